"""Image grids are exact to the pixel; curves are files that repeat."""

import numpy as np
import torch
from PIL import Image

import figures


def test_a_grid_holds_every_pixel_where_it_belongs(tmp_path):
    images = torch.rand(7, 784)
    figures.save_png(figures.tile(images, 3), tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))[:: figures.ZOOM, :: figures.ZOOM]
    step = 28 + figures.GAP_PX
    assert sheet.shape == (3 * step + figures.GAP_PX, 3 * step + figures.GAP_PX)
    for i, image in enumerate(images):
        top, left = figures.GAP_PX + i // 3 * step, figures.GAP_PX + i % 3 * step
        expected = (image.reshape(28, 28) * 255).round().numpy()
        assert np.array_equal(sheet[top : top + 28, left : left + 28], expected), i
    assert (sheet[-step:, step:] == 255).all(), "what is left of the last row is white"


def test_each_pixel_becomes_equal_ones(tmp_path):
    figures.save_png(np.arange(6, dtype=np.uint8).reshape(2, 3), tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(sheet, np.kron(np.arange(6).reshape(2, 3), np.ones((3, 3))))


def test_curves_are_equal_bytes_for_equal_numbers(tmp_path):
    for name in ("a.pdf", "b.pdf"):
        with figures.canvas(tmp_path / name) as axis:
            figures.train_and_val(axis, [3.0, 2.0, 1.0], [3.0, 2.5, 2.0], "loss")
    first, second = ((tmp_path / name).read_bytes() for name in ("a.pdf", "b.pdf"))
    assert first.startswith(b"%PDF") and first == second


def test_epochs_are_whole_also_of_a_short_run(tmp_path):
    with figures.canvas(tmp_path / "a.pdf") as axis:
        figures.train_and_val(axis, [3.0, 2.0, 1.0], [3.0, 2.5, 2.0], "loss")
        assert all(tick == round(tick) for tick in axis.get_xticks()), axis.get_xticks()


def test_the_legend_names_the_last_values(tmp_path):
    with figures.canvas(tmp_path / "a.pdf") as axis:
        figures.train_and_val(axis, [3.0, 1.25], [3.0, 2.5], "loss")
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["train 1.250", "validation 2.500"]


def test_labels_that_stand_on_one_another_are_moved_apart():
    places = np.array([[0.5, 0.5], [0.5, 0.5], [0.52, 0.5], [0.1, 0.1]])
    moved = figures.apart(places, 0.1)
    gaps = np.linalg.norm(moved[:, None] - moved, axis=2)[np.triu_indices(4, 1)]
    assert gaps.min() > 0.0999 and np.array_equal(moved[3], places[3])
    assert np.allclose(moved.mean(axis=0), places.mean(axis=0))
