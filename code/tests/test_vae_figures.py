"""What a run of the VAE draws: labels that can be read."""

import numpy as np

from a3 import vae_figures


def test_labels_that_stand_on_one_another_are_moved_apart():
    places = np.array([[0.5, 0.5], [0.5, 0.5], [0.52, 0.5], [0.1, 0.1]])
    moved = vae_figures.apart(places, 0.1)
    gaps = np.linalg.norm(moved[:, None] - moved, axis=2)[np.triu_indices(4, 1)]
    assert gaps.min() > 0.0999 and np.array_equal(moved[3], places[3])
    assert np.allclose(moved.mean(axis=0), places.mean(axis=0))
