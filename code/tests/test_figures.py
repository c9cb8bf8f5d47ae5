"""Image grids are exact to the pixel; curves are files that repeat; pyplot stays as it is."""

import os
import subprocess
import sys
import textwrap
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from a3 import figures

CODE = Path(figures.__file__).parents[1]


def pixels(path: Path) -> np.ndarray:
    """Return the grey values of a figure, one for each pixel of its images."""
    return np.asarray(Image.open(path))[:: figures.ZOOM, :: figures.ZOOM]


def test_a_grid_holds_every_pixel_where_it_belongs(tmp_path):
    images = torch.rand(7, 784, generator=torch.Generator().manual_seed(0))
    figures.save_png(figures.tile(images, 3), tmp_path / "grid.png")
    sheet = pixels(tmp_path / "grid.png")
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


def test_values_beyond_black_and_white_are_clipped():
    sheet = figures.tile(torch.tensor([-0.5, 1.5]).repeat(392)[None], 1)
    inside = sheet[figures.GAP_PX:-figures.GAP_PX, figures.GAP_PX:-figures.GAP_PX]
    assert np.array_equal(inside.flatten(), [0, 255] * 392)


def test_sheets_stand_below_or_beside_each_other_on_white():
    black, grey = np.zeros((4, 6), np.uint8), np.full((4, 6), 9, np.uint8)
    below, beside = figures.join((black, grey), 0, gap=3), figures.join((black, grey), 1, gap=3)
    assert np.array_equal(below, np.concatenate((black, np.full((3, 6), 255), grey)))
    assert np.array_equal(beside, np.concatenate((black, np.full((4, 3), 255), grey), axis=1))


def made_up_run(folder: Path) -> Namespace:
    """Return a run whose image at epoch e has the grey value 10 e; the epochs are unordered."""
    snapshots = {epoch: {"samples": torch.full((25, 784), 10 * epoch / 255)}
                 for epoch in (4, 0, 2, 1, 3)}
    named = [(name, snapshots[epoch]) for name, epoch in (("start", 0), ("half", 2), ("end", 4))]
    return Namespace(snapshots=snapshots, named_moments=lambda: named,
                     figure=lambda name: folder / name)


def test_the_moments_of_a_run_are_drawn_one_by_one_and_side_by_side(tmp_path):
    figures.save_moments(made_up_run(tmp_path))
    for name, value in (("start", 0), ("half", 20), ("end", 40)):
        sheet = pixels(tmp_path / f"samples-{name}.png")
        assert sheet.shape == (5 * 30 + 2, 5 * 30 + 2) and (sheet == value).sum() == 25 * 784
    gallery = pixels(tmp_path / "gallery.png")
    assert gallery.shape == (4 * 30 + 2, 5 * (4 * 30 + 2) + 4 * 14)
    row = gallery[figures.GAP_PX]
    assert list(dict.fromkeys(row[row < 255])) == [0, 10, 20, 30, 40], "in the order of training"
    assert all((gallery == value).sum() == 16 * 784 for value in (0, 10, 20, 30, 40))


def test_the_users_pyplot_stays_as_it_is(tmp_path):
    """In a process of its own, whose backend is not the one that writes PDFs."""
    child = textwrap.dedent(f"""
        import matplotlib
        from matplotlib import pyplot
        own = pyplot.figure()
        before = dict(matplotlib.rcParams)
        from a3 import figures
        with figures.canvas({str(tmp_path / "a.pdf")!r}) as axis:
            axis.plot([1, 2])
        assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
        assert pyplot.get_fignums() == [own.number], pyplot.get_fignums()
        assert pyplot.gcf() is own and not own.axes
        assert dict(matplotlib.rcParams) == before
        """)
    subprocess.run([sys.executable, "-c", child], check=True,
                   cwd=Path(figures.__file__).parents[1], env={**os.environ, "MPLBACKEND": "svg"})
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


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
    for train, val, expected in (([3.0, 1.25], [3.0, 2.5], ["train 1.250", "validation 2.500"]),
                                 ([99.0, 9.5], [99.0, 10.0], ["train 9.50", "validation 10.00"])):
        with figures.canvas(tmp_path / "a.pdf") as axis:
            figures.train_and_val(axis, train, val, "loss")
            labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert labels == expected


def test_an_import_changes_nothing_of_the_users(tmp_path):
    """As in a notebook: a backend, settings and random numbers of the user's own."""
    child = textwrap.dedent(f"""
        import logging, os, random, sys, warnings
        import matplotlib, numpy, torch
        import scipy.stats, torchvision  # which add filters for warnings of their own
        from matplotlib import pyplot
        sys.path.insert(0, {str(CODE)!r})
        matplotlib.use("svg")
        matplotlib.rcParams.update({{"font.size": 17, "figure.dpi": 55, "axes.grid": True}})
        warnings.simplefilter("ignore", UserWarning)
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        figure = pyplot.figure()

        def state():
            return {{
                "backend": matplotlib.get_backend(), "rcParams": dict(matplotlib.rcParams),
                "figures": pyplot.get_fignums(), "interactive": matplotlib.is_interactive(),
                "threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(),
                "grad": torch.is_grad_enabled(), "torch": torch.get_rng_state().tolist(),
                "numpy": str(numpy.random.get_state()), "random": random.getstate(),
                "matmul": torch.get_float32_matmul_precision(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "errors": numpy.geterr(), "warnings": list(warnings.filters),
                "path": list(sys.path), "folder": os.getcwd(), "environment": dict(os.environ),
                "logging": (logging.root.level, list(logging.root.handlers)),
                "hooks": (sys.excepthook, sys.displayhook), "argv": list(sys.argv)}}

        before = state()
        for script in {sorted(path.stem for path in CODE.glob("*.py"))}:
            __import__(script)
        from a3 import figures
        with figures.canvas({str(tmp_path / "a.pdf")!r}) as axis:
            axis.plot([1, 2])
        after = state()
        changed = [key for key in before if before[key] != after[key]]
        assert not changed, changed
        assert pyplot.gcf() is figure and not figure.axes
        """)
    result = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True,
                            cwd=tmp_path, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
