"""The judges: committed, the same for everybody, and what they say of samples."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import judges
from a3 import judge_classifier as judge
from a3.fetch import sample_digits
from a3.judge_metrics import frechet_distance
from a3.runs import RunError
from datasets import Source, Split, binarize
from made_up import grey


def labelled(number: int) -> Split:
    """Return images of ten kinds, each of which is bright in rows of its own."""
    images = grey(number).images // 4
    labels = torch.arange(number) % 10
    for image, label in zip(images.reshape(-1, 28, 28), labels, strict=True):
        image[4 + 2 * label: 6 + 2 * label] = 255
    return Split(images, Source("sample", "", ""), labels)


@pytest.mark.parametrize("kind", judge.JUDGES)
def test_a_judge_is_the_committed_one_with_small_weights(kind):
    before = torch.get_rng_state()
    network, facts = judge.judge(kind)
    assert torch.equal(before, torch.get_rng_state()), "draws from its own generator"
    file = judge.WEIGHTS / f"{facts['classifier']}.pt"
    content = file.read_bytes()
    assert hashlib.sha256(content).hexdigest() == facts["classifier_sha256"]
    assert len(content) <= 500_000 and facts["classifier"].startswith(kind)
    held = torch.load(file, weights_only=True)["weights"]
    assert {value.dtype for value in held.values()} == {torch.float16}
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, held[name].float()), name
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    table = (judge.WEIGHTS / "README.md").read_text(encoding="utf-8")
    assert facts["classifier_sha256"] in table and file.name in table
    assert f"{facts['classifier_test_accuracy']:.4f}" in table


def test_the_judges_know_digits_and_the_random_one_does_not():
    images, labels, _ = sample_digits(Path(), download=False)
    x, digits = images[2] / 255, labels[2]
    seen = {"grey": x, "binary": binarize(images[2]).float(), "random": x}
    right = {kind: float((judge.classify(judge.judge(kind)[0], part)[0] == digits).float().mean())
             for kind, part in seen.items()}
    assert min(right["grey"], right["binary"]) > 0.97 and right["random"] < 0.4, right


@pytest.mark.parametrize("content", [b"", b"another"])
def test_a_missing_or_another_judge_is_refused(content, tmp_path, monkeypatch):
    """A judge made anew has another hash, and so another name: its numbers do not mix."""
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path)
    if content:
        (tmp_path / f"grey-{judge.JUDGES['grey'][:8]}.pt").write_bytes(content)
    with pytest.raises(RunError, match="git checkout code/weights") as error:
        judge.judge("grey")
    assert ("damaged" if content else "missing") in str(error.value)


def test_judges_are_made_anew_beside_the_committed_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "EPOCHS", 1)
    monkeypatch.setattr(judges, "mnist", lambda *_, **__: (labelled(256), None, labelled(50)))
    again = [judges.main(["--device", "cpu", "--out", str(tmp_path / name)]) for name in "ab"]
    assert list(again[0]) == list(judge.JUDGES)
    for kind, file in again[0].items():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert file.name == f"{kind}-{digest[:8]}.pt" == again[1][kind].name
    committed = {kind: f"{kind}-{digest[:8]}.pt" for kind, digest in judge.JUDGES.items()}
    assert again[0]["grey"].name != committed["grey"]
    weights = [torch.load(file, weights_only=True)["weights"] for file in again[0].values()]
    assert not torch.equal(weights[0]["body.1.weight"], weights[1]["body.1.weight"])
    untrained = torch.load(judge.WEIGHTS / committed["random"], weights_only=True)["weights"]
    for name, value in untrained.items():
        assert torch.allclose(value, weights[2][name], atol=1e-3), "seed 0, and no training"


def test_a_judge_learns_from_the_images_that_it_will_see_in_another_order_each_time(monkeypatch):
    monkeypatch.setattr(judge, "EPOCHS", 2)
    data, seen = labelled(60), []
    data.batch_size = 60
    network = judge.DigitClassifier()
    network.register_forward_pre_hook(lambda _, given: seen.append((network.training, given[0])))
    judge.fit(network, data)
    (mode, one), (_, other) = seen
    assert mode and not torch.equal(one, other) and not torch.equal(one, data.images / 255)
    for batch in (one, other):
        assert torch.equal(batch.sum(dim=1).sort().values,
                           (data.images / 255).sum(dim=1).sort().values)


def distances() -> list[float]:
    """Return Frechet distances of 2,000 digits from paler ones, by two judges."""
    images = sample_digits(Path(), download=False)[0][0] / 255
    parts = images[:1000], images[1000:2000] * 0.9
    return [frechet_distance(*(judge.features(judge.judge(kind)[0], part) for part in parts))
            for kind in ("grey", "random")]


def test_everybody_judges_alike():
    """By another number of threads, and with the vector instructions of an older processor."""
    code, threads, said = str(judge.WEIGHTS.parent), torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        said.append(distances())
    torch.set_num_threads(threads)
    start = (f"import sys; sys.path[:0] = {[code, code + '/tests']!r}\n"
             "import torch, test_judge_classifier as test\n"
             "assert torch.backends.cpu.get_cpu_capability() in ('AVX2', 'NO AVX', 'DEFAULT')\n"
             "print(*test.distances())")
    child = subprocess.run([sys.executable, "-B", "-c", start], capture_output=True, text=True,
                           env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}, check=True)
    said.append([float(value) for value in child.stdout.split()])
    for values in zip(*said, strict=True):
        assert max(values) - min(values) < 1e-3, said
    assert said[0][0] > 1, said


def first_pixels(x: torch.Tensor) -> torch.Tensor:
    """Take the first ten pixels as logits; as features, the first two."""
    return x[:, :10]


first_pixels.features = lambda x: x[:, :2]


def test_samples_are_counted_by_digit_and_by_how_clear_they_are():
    samples = torch.zeros(1500, 784)  # more than a batch
    samples[:1200, 3] = 100.0  # clearly 3
    samples[1200:, 7] = 4.0  # rather 7, with probability 0.86
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
