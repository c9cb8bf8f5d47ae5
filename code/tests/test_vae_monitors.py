"""Monitors on posteriors that are made up, so that the answers are known."""

import math
from argparse import Namespace

import pytest
import torch
from torch.distributions import Independent, Normal

from a3 import vae_monitors as monitors
from a3_vae_template import gaussian_kls
from datasets import Split


def drawn(mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return mean + log_std.exp() * torch.randn_like(mean)


def test_units_are_active_where_the_mean_moves():
    torch.manual_seed(0)
    mean = torch.randn(5000, 4) * torch.tensor([1.0, 0.05, 0.2, 0.0])
    assert monitors.active_units(mean) == 2  # variances 1, 0.0025, 0.04, 0


def log_q(z: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    return Independent(Normal(mean, log_std.exp()), 1).log_prob(z[:, None])


def test_equal_posteriors_say_nothing_and_separate_ones_name_the_image():
    mean, log_std = torch.zeros(300, 5), torch.zeros(300, 5)
    assert abs(monitors.mutual_information(log_q(drawn(mean, log_std), mean, log_std))) < 1e-6
    far = 100.0 * torch.arange(300)[:, None].expand(300, 5)
    said = monitors.mutual_information(log_q(drawn(far, log_std), far, log_std))
    assert math.isclose(said, math.log(300), rel_tol=1e-6), (said, math.log(300))


def test_the_information_of_a_noisy_channel_is_shannons():
    """Z = x + noise with x ~ N(0, 1) and noise of variance 1/4: I = 1/2 log(1 + 4)."""
    torch.manual_seed(1)
    mean, log_std = torch.randn(4000, 1), torch.full((4000, 1), math.log(0.5))
    said = monitors.mutual_information(log_q(drawn(mean, log_std), mean, log_std))
    assert abs(said - 0.5 * math.log(5)) < 0.03, (said, 0.5 * math.log(5))


def test_the_codes_of_some_images_estimate_the_information_of_all():
    torch.manual_seed(1)
    mean, log_std = torch.randn(2000, 2), torch.full((2000, 2), -1.0)
    pairs = log_q(drawn(mean, log_std), mean, log_std)
    whole, some = monitors.mutual_information(pairs), monitors.mutual_information(pairs[:500])
    assert abs(whole - some) < 0.1 and whole != some, (whole, some)


def test_the_pixel_entropy_is_that_of_the_shares():
    images = torch.tensor([[0, 5], [1, 5], [0, 5], [1, 5]], dtype=torch.uint8)
    assert math.isclose(monitors.pixel_entropy(images), math.log(2))


@pytest.mark.parametrize(("kl", "active", "smallest", "expected"), [
    (0.05, 3, 0.5, monitors.COLLAPSE), (5.0, 0, 0.5, monitors.COLLAPSE),
    (25.0, 15, 0.05, monitors.HEALTHY), (25.0, 15, 5e-4, monitors.OVERLOAD),
    (250.0, 20, 0.01, monitors.OVERLOAD)])
def test_verdicts(kl, active, smallest, expected):
    assert monitors.verdict(kl, active, smallest, entropy=200.0) == expected


def test_a_collapsed_and_an_overloaded_posterior_are_told_with_the_remedy():
    torch.manual_seed(0)
    collapsed = (1e-3 * torch.randn(200, 4), torch.zeros(200, 4))
    overloaded = (50 * torch.randn(200, 4), torch.full((200, 4), -8.0))
    for (mean, log_std), name, remedy in ((collapsed, monitors.COLLAPSE, "--objective free_bits"),
                                          (overloaded, monitors.OVERLOAD, "--objective elbo")):
        kl = gaussian_kls(mean, log_std).sum(1).mean().item()
        pairs = log_q(drawn(mean, log_std), mean, log_std)
        health = monitors.examine(mean, log_std, pairs, kl, 200.0)
        assert health.verdict == name and remedy in health.warning()
    log_std = torch.zeros(50, 4)
    log_std[7, 2], log_std[:3, 1] = math.log(1e-9), math.log(0.5)  # one of 200, and three
    healthy = monitors.examine(torch.randn(50, 4), log_std, torch.randn(9, 50), 5.0, 200.0)
    assert healthy.warning() is None and math.isclose(healthy.low_std, 0.5, rel_tol=1e-6)


def test_the_numbers_of_the_codes_are_named_by_their_split():
    health = monitors.Health(3, 1.5, 0.25, monitors.HEALTHY)
    assert health.numbers("test") == {"test_active_units": 3, "test_std_1_percent_quantile": 0.25,
                                      "test_mutual_information_nats": 1.5}


def test_all_images_are_examined_and_codes_from_the_whole_split():
    """Every pixel of image i is i // 40 here; a file's first images may be easier ones."""
    seen = []

    def log_posterior(codes, x):
        seen.append((codes[:, 0], x[:, 0]))
        return torch.zeros(len(codes), len(x))

    model = Namespace(gaussian=lambda x: (x[:, :2], torch.zeros(len(x), 2), x),
                      terms=lambda x, eps: Namespace(z=x[:, :2]),
                      posterior=lambda mean, features: (0.0 * mean, None),
                      log_posterior=log_posterior)
    images = (torch.arange(10_000) // 40).to(torch.uint8)[:, None].expand(-1, 784)
    health = monitors.check_codes(model, Split(images, None), 1.0, 200.0)
    assert health.active_units == 0, "the flow of the posterior makes all codes alike"
    codes = torch.cat([rows for rows, _ in seen])
    assert len(codes) == monitors.EXAMINED_CODES
    for _, x in seen:
        assert len(x) == len(images) and torch.equal(x[:len(codes)], codes)
    assert abs(codes.mean() - 124.5) < 20, codes.mean()
