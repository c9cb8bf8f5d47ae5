"""The data are the named files bit for bit; anything else is refused or announced."""

import hashlib
import io
import os
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
from datasets import DataError, Split, binarize, bmnist, mnist, moved, shift_table

REAL = Path(os.environ.get("A3_DATA", "no such folder"))
ROWS = {"train": 5, "valid": 3, "test": 2}


def amat(rows: int, seed: int) -> tuple[np.ndarray, bytes]:
    """Return random binary images and the bytes of their file, written digit by digit."""
    images = np.random.default_rng(seed).integers(0, 2, (rows, 784), dtype=np.uint8)
    lines = [" ".join(str(pixel) for pixel in image) for image in images]
    return images, ("\n".join(lines) + "\n").encode()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data root with three small .amat files, whose hashes count as the published ones."""
    (tmp_path / "binarized_mnist").mkdir()
    images, contents = {}, {}
    for seed, (split, rows) in enumerate(ROWS.items()):
        name = f"binarized_mnist/binarized_mnist_{split}.amat"
        images[split], contents[name] = amat(rows, seed)
        (tmp_path / name).write_bytes(contents[name])
        monkeypatch.setitem(datasets.SHA256, name, hashlib.sha256(contents[name]).hexdigest())
    return SimpleNamespace(root=tmp_path, images=images, contents=contents)


def no_network(*args, **kwargs):
    raise urllib.error.URLError("no network in a test")


def test_splits_are_the_named_files_bit_for_bit(tiny):
    for split, key in zip(bmnist(tiny.root), ROWS, strict=True):
        assert torch.equal(split.images, torch.from_numpy(tiny.images[key])), key
        assert split.source.name == "bmnist"


def test_val_and_test_keep_their_order_and_train_does_not(tiny):
    _, val, test = bmnist(tiny.root, batch_size=2)
    for split in (val, test):
        assert torch.equal(torch.cat(list(split)), split.images.float())
    train = mnist(dataset="sample")[0]
    assert not torch.equal(torch.cat(list(train)), train.images.float())


@pytest.mark.parametrize("damage", ["truncated", "shifted", "altered"])
def test_a_damaged_file_is_refused_and_does_not_give_way_to_another_source(tiny, damage):
    name = "binarized_mnist/binarized_mnist_valid.amat"
    whole = tiny.contents[name]
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    damaged = {"truncated": whole[:-1568], "shifted": whole[2:] + whole[:2], "altered": flipped}
    (tiny.root / name).write_bytes(damaged[damage])
    with pytest.raises(DataError, match="valid.amat' is damaged"):
        bmnist(tiny.root)


def test_without_files_and_network_the_sample_is_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    train, val, test = bmnist(tmp_path / "absent")
    told = capsys.readouterr().out
    assert "bmnist is not to be had" in told and "mnist is not to be had" in told
    assert train.source.name == "sample"
    assert [len(split.images) for split in (train, val, test)] == [4000, 500, 500]


def test_naming_a_source_never_gives_another(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    for load, name in ((bmnist, "bmnist"), (bmnist, "mnist"), (mnist, "mnist")):
        with pytest.raises(DataError, match="cannot be had"):
            load(tmp_path, dataset=name)
    with pytest.raises(DataError, match="expected auto or one of"):
        mnist(tmp_path, dataset="cifar")


def test_a_file_as_data_root_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be read as the data folder"):
        bmnist(tmp_path / "file")


class Answer(io.BytesIO):
    """What a server sends."""

    headers: dict = {}  # noqa: RUF012


def test_a_download_arrives_whole_or_not_at_all(tiny, monkeypatch):
    for name in tiny.contents:
        (tiny.root / name).unlink()
    sent = {Path(name).name: content for name, content in tiny.contents.items()}
    monkeypatch.setattr("urllib.request.urlopen",
                        lambda url, timeout: Answer(sent[url.rsplit("/", 1)[1]]))
    assert torch.equal(bmnist(tiny.root)[1].images, torch.from_numpy(tiny.images["valid"]))

    broken = tiny.root / "binarized_mnist" / "binarized_mnist_test.amat"
    broken.unlink()
    sent[broken.name] = sent[broken.name][:-1]
    with pytest.raises(DataError):
        bmnist(tiny.root, dataset="bmnist")
    assert sorted(path.name for path in broken.parent.iterdir()) == [
        "binarized_mnist_train.amat", "binarized_mnist_valid.amat"]


def test_sample_splits_are_disjoint_real_digits():
    parts = mnist(dataset="sample")
    rows = torch.cat([part.images for part in parts])
    assert len(torch.unique(rows, dim=0)) == 5000
    assert rows.max() == 255
    for part in parts:
        assert part.labels.bincount(minlength=10).min() >= len(part.labels) * 0.06


def test_digits_are_upright():
    """Ones are upright strokes: their ink spreads over more rows than columns."""
    test = mnist(dataset="sample")[2]
    ones = test.images[test.labels == 1].reshape(-1, 28, 28).float().mean(0)
    rows, columns = (ones.sum(dim) > ones.sum() / 100 for dim in (1, 0))
    assert rows.sum() > columns.sum(), (rows.sum(), columns.sum())


def test_binarize_has_the_pixels_as_means_and_is_drawn_once():
    grey = torch.arange(0, 256, dtype=torch.uint8)[:, None].repeat(1, 784 * 10)
    drawn = binarize(grey)
    assert torch.equal(drawn, binarize(grey))
    assert torch.equal(drawn[0], torch.zeros_like(drawn[0]))
    assert torch.equal(drawn[255], torch.ones_like(drawn[255]))
    error = (drawn.float().mean(1) - grey[:, 0] / 255).abs().max()
    assert error < 4.5 * 0.5 / 7840**0.5, error


@settings(max_examples=25)
@given(n=st.integers(1, 40), batch=st.integers(1, 50))
def test_every_image_once_and_the_short_last_batch_too(n, batch):
    images = torch.arange(n, dtype=torch.uint8)[:, None].repeat(1, 784)
    split = Split(images, None, batch_size=batch, generator=torch.Generator().manual_seed(0))
    batches = list(split)
    assert len(batches) == len(split)
    assert sorted(torch.cat(batches)[:, 0].tolist()) == list(range(n))
    assert all(len(one) == batch for one in batches[:-1])


def test_shift_moves_by_one_pixel_and_repeats_the_edge():
    image = torch.rand(28, 28)
    table = shift_table(1)
    assert table.shape == (9, 784)
    padded = torch.nn.functional.pad(image[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    for i, index in enumerate(table):
        down, right = divmod(i, 3)
        expected = padded[down : down + 28, right : right + 28]
        assert torch.equal(image.flatten()[index].reshape(28, 28), expected)


def test_only_training_images_are_shifted():
    plain, shifted = mnist(dataset="sample"), mnist(dataset="sample", shift=1)
    for one, other in zip(plain[1:], shifted[1:], strict=True):
        assert torch.equal(torch.cat(list(one)), torch.cat(list(other)))
    assert not torch.equal(torch.cat(list(plain[0])), torch.cat(list(shifted[0])))


def test_a_share_of_the_images_is_shifted():
    """As images are distinct pixels here, an image is moved if and only if it has changed."""
    images = torch.arange(784).repeat(4000, 1)
    for share, expected in ((1.0, 8 / 9), (0.5, 4 / 9), (0.0, 0.0)):
        noise = torch.Generator().manual_seed(0)
        out = moved(images, shift_table(1), noise, share)
        changed = (out != images).any(dim=1).double().mean().item()
        assert abs(changed - expected) < 0.03 and (share or changed == 0), (share, changed)


def test_a_shift_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="shift 1 needs a generator"):
        Split(torch.zeros(1, 784, dtype=torch.uint8), None, shift=1)


def test_limit_cuts_the_training_images_only():
    assert [len(split.images) for split in mnist(dataset="sample", limit=7)] == [7, 500, 500]


@pytest.mark.skipif(not (REAL / "binarized_mnist").is_dir(), reason="no real data here")
def test_the_real_binary_files_are_three_different_splits():
    train, val, test = bmnist(REAL, dataset="bmnist")
    assert [len(split.images) for split in (train, val, test)] == [50_000, 10_000, 10_000]
    assert all(split.images.max() == 1 for split in (train, val, test))
    held_out = {image.tobytes() for image in val.images.numpy()}
    assert not held_out & {image.tobytes() for image in test.images.numpy()}


@pytest.mark.skipif(not (REAL / "MNIST").is_dir(), reason="no real data here")
def test_real_mnist_is_the_raw_file():
    *_, test = mnist(REAL, dataset="mnist")
    raw = (REAL / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:]
    assert test.images.numpy().tobytes() == raw
    assert test.images.max() == 255
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
