"""The digit classifier: trained once, the same for everybody, and what it says of samples."""

import pytest
import torch

from a3 import judge_classifier as judge
from a3.runs import RunError
from datasets import Source, Split
from made_up import grey


def labelled(number: int) -> Split:
    """Return images of ten kinds, each of which is bright in rows of its own."""
    images = grey(number).images // 4
    labels = torch.arange(number) % 10
    for image, label in zip(images.reshape(-1, 28, 28), labels, strict=True):
        image[4 + 2 * label: 6 + 2 * label] = 255
    return Split(images, Source("sample", "", ""), labels)


def test_a_damaged_classifier_is_refused(tmp_path):
    (tmp_path / "digit-classifier-sample.pt").write_bytes(b"damaged")
    with pytest.raises(RunError, match="delete it"):
        judge.trained_classifier(labelled(10), labelled(10), tmp_path)


def test_the_classifier_is_trained_once_by_seed_0_and_then_read(tmp_path, monkeypatch):
    train, test, facts = labelled(1000), labelled(100), []
    for seed, folder in ((1, "a"), (2, "b"), (3, "a")):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        if seed == 3:
            monkeypatch.setattr(judge, "fit", None)  # cannot be called
        classifier, found = judge.trained_classifier(train, test, tmp_path / folder, "striped")
        assert torch.equal(before, torch.get_rng_state()), "draws from its own generator"
        assert not classifier.training and not any(p.requires_grad
                                                   for p in classifier.parameters())
        facts.append(found)
    assert facts[0] == facts[1] == facts[2], facts
    assert facts[0]["classifier_test_accuracy"] > 0.95, facts[0]
    assert (tmp_path / "a/digit-classifier-sample-striped.pt").exists()


def first_pixels(x: torch.Tensor) -> torch.Tensor:
    """Take the first ten pixels as logits; as features, the first two."""
    return x[:, :10]


first_pixels.features = lambda x: x[:, :2]


def test_samples_are_counted_by_digit_and_by_how_clear_they_are():
    samples = torch.zeros(1500, 784)  # more than a batch
    samples[:1200, 3] = 100.0  # clearly 3
    samples[1200:, 7] = 1.0  # rather 7
    row = judge.judge_samples(first_pixels, samples, *torch.rand(2, 500, 784))
    assert row["class_shares"] == pytest.approx([0, 0, 0, 0.8, 0, 0, 0, 0.2, 0, 0])
    assert (row["classes_found"], row["smallest_class_share"]) == (2, 0)
    assert row["clear_share"] == pytest.approx(0.8) and row["samples"] == 1500


def test_samples_are_compared_with_test_and_with_val_and_these_with_each_other():
    """The Frechet distance of clouds of one shape is the squared distance of their means."""
    cloud = torch.zeros(300, 784)
    cloud[:, :2] = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    samples, val, test = (cloud + torch.eye(784)[0] * shift for shift in (0.0, 1.0, 3.0))
    row = judge.judge_samples(first_pixels, samples, val, test)
    distances = [row[key] for key in ("val_frechet_distance", "frechet_distance", "frechet_floor")]
    assert distances == pytest.approx([1.0, 9.0, 4.0], abs=1e-3), distances
