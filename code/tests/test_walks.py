"""Attributes of made-up digits, attribute vectors where the decoder is linear, walks of runs."""

import json
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import a3_nf_template as nf
import a3_vae_template as vae
import vae_variants
import walks
from a3 import checkpoints
from a3.figures import ZOOM
from a3.latents import line_and_arc
from a3.runs import RunError

FIGURES = {"prior.png", "interpolation.png", "path.pdf", "attributes.png", "dimensions.png"}
TINY = ["--dataset", "sample", "--limit", "64", "--device", "cpu", "--epochs", "1", "--zdim", "3",
        "--hidden_dim", "16", "--nll_samples", "2"]


def bar(columns: list[int], width: int = 1) -> torch.Tensor:
    """A digit of one stroke: the ink of each row from a column on."""
    board = torch.zeros(28, 28)
    for row, column in enumerate(columns, start=4):
        board[row, column:column + width] = 1
    return board.flatten()


def test_the_attribute_vector_of_a_linear_decoder_is_recovered():
    torch.manual_seed(0)
    decoder = torch.randn(784, 5, dtype=torch.float64)
    has, direction = torch.rand(4000) < 0.3, torch.randn(5, dtype=torch.float64)
    codes = torch.randn(4000, 5, dtype=torch.float64) + has[:, None] * direction
    images = codes @ decoder.T
    recovered = torch.linalg.lstsq(decoder, images.T).solution.T
    vector = walks.attribute_vector(recovered, has)
    assert (vector - direction).abs().max() < 0.15, (vector, direction)
    exact = walks.attribute_vector(torch.stack([direction, 0 * direction]),
                                   torch.tensor([True, False]))
    assert torch.equal(exact, direction)


def test_slant_is_the_lean_to_the_right():
    upright, right, left = bar([10] * 20), bar(list(range(24, 4, -1))), bar(list(range(5, 25)))
    values = walks.slant(torch.stack([upright, right, left]))
    assert torch.allclose(values, torch.tensor([0.0, 1.0, -1.0]), atol=1e-5), values


def test_thickness_is_the_width_of_the_stroke():
    values = walks.thickness(torch.stack([bar([10] * 20, width) for width in (1, 2, 4)]))
    # a bar of w x 20: twice the area over the outline 2 (w + 20)
    assert torch.allclose(values, torch.tensor([20 / 21, 40 / 22, 80 / 24])), values


def test_extremes_are_a_tenth_each():
    values = torch.arange(50.0).flip(0)
    most, least = walks.extremes(values)
    assert sorted(most.tolist()) == [0, 1, 2, 3, 4]
    assert sorted(least.tolist()) == [45, 46, 47, 48, 49]


# Walks -------------------------------------------------------------------------------------------

class Decoding:
    """A model that keeps the codes it is asked to decode, and shows their first number."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return one grey value an image."""
        self.codes = codes
        return codes[:, :1].expand(-1, 784)


@pytest.mark.parametrize(("means", "images", "nats"), [
    (0.5, 1.0, 784 * math.log(0.5)), (0.25, 0.0, 784 * math.log(0.75)), (0.0, 0.0, 0.0),
    (1.0, 1.0, 0.0)])
def test_the_likelihood_of_a_prior_sample_is_that_of_its_pixels(tmp_path, means, images, nats):
    model = Namespace(sample=lambda n, noise: [torch.full((n, 784), value)
                                               for value in (images, means)])
    told = walks.draw_prior(model, None, lambda name: tmp_path / name)
    assert told == {"prior_samples_log_likelihood_nats": pytest.approx([nats] * 20, rel=1e-5)}
    grey = np.asarray(Image.open(tmp_path / "prior.png"))
    assert (grey[2 * ZOOM : 30 * ZOOM, 2 * ZOOM : 30 * ZOOM] == round(255 * means)).all()


def test_paths_of_equal_ends_have_equal_numbers_there():
    """The noise of -ELBO is the same for every path; norms are the codes' own."""
    torch.manual_seed(0)
    model, ends = vae.VAE(16, 3).eval(), 3 * torch.randn(2, 3)
    straight, spherical = line_and_arc(*ends, 5).split(5)
    numbers = [walks.path_numbers(model, path) for path in (straight, spherical)]
    for (norms, _), path in zip(numbers, (straight, spherical), strict=True):
        assert norms == pytest.approx([math.hypot(*code) for code in path.tolist()], rel=1e-5)
    elbos = [elbo for _, elbo in numbers]
    assert [elbos[0][i] for i in (0, -1)] == pytest.approx([elbos[1][i] for i in (0, -1)])
    image = (model.decode(ends[:1]) > 0.5).float()
    expected = sum(model.elbo_terms(image.expand(4000, -1))).mean().item()
    assert abs(elbos[0][0] - expected) < 2, (elbos[0][0], expected)


def test_dimensions_are_traversed_from_the_largest_kl_on(tmp_path, monkeypatch):
    monkeypatch.setattr(walks, "SHOWN_DIMENSIONS", 2)
    model = Decoding()
    walks.draw_dimensions(model, torch.tensor([1.0, 0.0, 3.0]), lambda name: tmp_path / name)
    expected = torch.tensor([[0.0, 0.0, step] for step in walks.TRAVERSAL]
                            + [[step, 0.0, 0.0] for step in walks.TRAVERSAL])
    assert torch.equal(model.codes, expected), model.codes
    assert (tmp_path / "dimensions.png").exists()


def test_attributes_are_added_to_one_code_each(tmp_path):
    """The codes are slant, thickness and being an 8 themselves: each walk changes its own most."""
    torch.manual_seed(0)
    labels = torch.arange(200) % 10
    digits = [bar([14 - round(lean * row) for row in range(-6, 7)], width) for lean, width in
              zip((2 * torch.rand(200) - 1).tolist(), (1 + torch.arange(200) % 3).tolist(),
                  strict=True)]
    images = torch.stack(digits)
    codes = torch.stack((walks.slant(images), walks.thickness(images), (labels == 8).float()), 1)
    model = Decoding()
    walks.draw_attributes(model, codes, images, labels, lambda name: tmp_path / name)
    paths = model.codes.reshape(3, len(walks.ATTRIBUTE_DOSES), 3)
    for path, base in zip(paths, (11, 17, 13), strict=True):  # the second 1, 7 and 3
        assert torch.allclose(path[3], codes[base]), (path[3], codes[base])
    changes = (paths[:, -1] - paths[:, 0]) / 3  # of one dose
    assert torch.equal(changes.abs().argmax(dim=1), torch.arange(3)), changes
    assert (changes.diagonal() > 0).all(), changes
    most, least = walks.extremes(codes[:, 0])
    expected = codes[most, 0].mean() - codes[least, 0].mean()
    assert math.isclose(changes[0, 0], expected, rel_tol=1e-5), (changes[0, 0], expected)
    assert math.isclose(changes[2, 2], 1, rel_tol=1e-5), changes[2, 2]


# The script, on models trained for an instant ----------------------------------------------------


def trained(out: Path, script, *more: str) -> tuple[str, list[str]]:
    """Train for an instant; return the run's name, and the flags that draw its walks."""
    script.main([*TINY, "--out", str(out), *more])
    name = next((out / "results").glob("*.json")).stem
    return name, [name, "--device", "cpu", "--out", str(out)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, str, list[str]]:
    """A run of the plain VAE: where it is, its name, and the flags that draw its walks."""
    out = tmp_path_factory.mktemp("plain")
    return out, *trained(out, vae)


def drawn(out: Path, name: str) -> dict[str, bytes]:
    """Return the figures of walks, by what follows the name."""
    return {path.name.removeprefix(f"{name}-"): path.read_bytes()
            for path in (out / "figures").glob(f"{name}-*")}


def test_walks_of_a_run_are_drawn_and_repeat_with_their_seed(plain):
    out, name, flags = plain
    results = walks.main(flags)
    figures = drawn(out, f"{name}-walk")
    assert set(figures) == FIGURES
    assert results == json.loads((out / "results" / f"{name}-walk.json").read_text())
    assert (results["run"], results["seed"]) == (name, 42)
    nats = results["prior_samples_log_likelihood_nats"]
    assert len(nats) == 20 and all(math.isfinite(one) and one < 0 for one in nats)
    assert walks.main(flags)["prior_samples_log_likelihood_nats"] == nats
    assert drawn(out, f"{name}-walk") == figures

    again = walks.main([*flags, "--seed", "7"])["prior_samples_log_likelihood_nats"]
    others = drawn(out, f"{name}-walk-seed7")
    assert again != nats and others["prior.png"] != figures["prior.png"]
    assert others["interpolation.png"] == figures["interpolation.png"], "between the same digits"


def test_walks_of_a_variant_are_drawn(tmp_path):
    name, flags = trained(tmp_path, vae_variants, "--prior", "flow", "--posterior", "flow")
    nats = walks.main(flags)["prior_samples_log_likelihood_nats"]
    assert set(drawn(tmp_path, f"{name}-walk")) == FIGURES
    assert len(nats) == 20 and all(math.isfinite(one) and one < 0 for one in nats)


def refusal(flags: list[str]) -> str:
    with pytest.raises(RunError) as refused:
        walks.main(flags)
    assert "\n" not in str(refused.value), "one line"
    return str(refused.value)


def test_a_run_of_grey_pixels_and_a_missing_one_are_refused(tmp_path):
    name, flags = trained(tmp_path, vae_variants, "--likelihood", "gaussian")
    assert f"'{name}' has a Gaussian likelihood" in refusal(flags)
    assert "no finished run 'nowhere'" in refusal(["nowhere", *flags[1:]])
    assert not list(tmp_path.rglob("*walk*"))


def test_walks_without_labelled_digits_are_refused(plain, monkeypatch):
    monkeypatch.setattr(walks, "labelled", lambda test, root: None)
    assert "labelled digits, which need MNIST" in refusal(plain[2])


def test_a_stopped_run_and_a_run_of_another_script_are_refused(tmp_path):
    name, flags = trained(tmp_path, vae)
    checkpoint = tmp_path / "checkpoints" / name / "last.pt"
    state = checkpoints.read(checkpoint)
    checkpoints.save({**state, "history": state["history"][:1],
                      "snapshots": {0: state["snapshots"][0]}}, checkpoint)
    assert "was stopped after epoch 0 of 1" in refusal(flags)
    flow = nf.main([*TINY[:8], "--n_flows", "1", "--n_hidden", "8", "--iw_samples", "1", "--out",
                    str(tmp_path)])
    other = next(path.stem for path in (tmp_path / "results").glob("nf*.json"))
    assert flow["epochs"] == 1
    assert f"'{other}' is not one of code/a3_vae_template.py" in refusal([other, *flags[1:]])
