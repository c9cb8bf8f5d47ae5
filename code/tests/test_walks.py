"""Attributes of made-up digits, and attribute vectors where the decoder is linear."""

import math

import torch

import a3_vae_template as vae
import walks


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


def test_a_run_draws_its_walks(tmp_path):
    results = vae.main(["--epochs", "1", "--limit", "64", "--dataset", "sample", "--device", "cpu",
                        "--out", str(tmp_path), "--hidden_dim", "16", "--zdim", "3", "--prior",
                        "flow", "--nll_samples", "2", "--walks"])
    drawn = {file.name.split("walk-")[1] for file in (tmp_path / "figures").glob("*walk-*")}
    assert drawn == {"prior.png", "interpolation.png", "path.pdf", "attributes.png",
                     "dimensions.png"}
    nats = results["prior_samples_log_likelihood_nats"]
    assert len(nats) == 20 and all(math.isfinite(one) and one < 0 for one in nats)
