"""What a run of the VAE draws: labels that can be read, means above samples."""

from argparse import Namespace

import numpy as np
import torch

from a3 import figures, vae_figures


def test_labels_that_stand_on_one_another_are_moved_apart():
    places = np.array([[0.5, 0.5], [0.5, 0.5], [0.52, 0.5], [0.1, 0.1]])
    moved = vae_figures.apart(places, 0.1)
    gaps = np.linalg.norm(moved[:, None] - moved, axis=2)[np.triu_indices(4, 1)]
    assert gaps.min() > 0.0999 and np.array_equal(moved[3], places[3])
    assert np.allclose(moved.mean(axis=0), places.mean(axis=0))


def test_samples_stand_below_their_means(monkeypatch):
    sheets = {}
    monkeypatch.setattr(figures, "save_png", lambda sheet, name: sheets.update({name: sheet}))
    monkeypatch.setattr(vae_figures, "save_elbo_plot", lambda *_: None)
    moment = {"means": torch.zeros(25, 784), "samples": torch.full((25, 784), 0.4)}
    vae_figures.save_training_figures(Namespace(
        history=[], figure=str, snapshots={0: moment}, named_moments=lambda: [("end", moment)]))
    sheet, middle = sheets["samples-end.png"], figures.GAP_PX + 14
    assert (sheet[middle, middle], sheet[-middle, middle]) == (0, 102)
    assert (sheets["gallery.png"][middle, middle]) == 0
