"""The data are the named files bit for bit; anything else is refused."""

import hashlib
import io
import os
import socket
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from a3 import fetch
from a3.fetch import DataError, Unavailable, bmnist_files, data_folder, mnist_files
from datasets import bmnist, mnist

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
        monkeypatch.setitem(fetch.SHA256, name, hashlib.sha256(contents[name]).hexdigest())
    return SimpleNamespace(root=tmp_path, images=images, contents=contents)


def test_splits_are_the_named_files_bit_for_bit(tiny):
    for split, key in zip(bmnist(tiny.root), ROWS, strict=True):
        assert torch.equal(split.images, torch.from_numpy(tiny.images[key])), key
        assert split.source.name == "bmnist" and split.labels is None
        assert split.source.sha256 == hashlib.sha256(tiny.images["train"].tobytes()).hexdigest()


@pytest.mark.parametrize("damage", ["truncated", "shifted", "altered"])
def test_a_damaged_file_is_refused_and_does_not_give_way_to_another_source(tiny, damage):
    name = "binarized_mnist/binarized_mnist_valid.amat"
    whole = tiny.contents[name]
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    damaged = {"truncated": whole[:-1568], "shifted": whole[2:] + whole[:2], "altered": flipped}
    (tiny.root / name).write_bytes(damaged[damage])
    with pytest.raises(DataError, match="valid.amat' is damaged"):
        bmnist(tiny.root)


def test_the_data_folder_is_the_named_one_or_the_variables_or_the_repositorys(tmp_path,
                                                                              monkeypatch):
    monkeypatch.setenv("A3_DATA", str(tmp_path / "variable"))
    assert data_folder(tmp_path / "named") == tmp_path / "named"
    assert data_folder(None) == tmp_path / "variable"
    monkeypatch.delenv("A3_DATA")
    assert data_folder(None) == Path(fetch.__file__).parents[2] / "data"


def test_a_file_as_data_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be read as the data folder"):
        data_folder(tmp_path / "file")


# Downloads ---------------------------------------------------------------------------------------

class Answer(io.BytesIO):
    """What a server sends."""

    headers: dict = {}  # noqa: RUF012


@pytest.fixture
def server(tiny, monkeypatch):
    """A server with the three files, by name; none of them is on the disk."""
    sent = {Path(name).name: content for name, content in tiny.contents.items()}
    for name in tiny.contents:
        (tiny.root / name).unlink()
    monkeypatch.setattr("urllib.request.urlopen",
                        lambda url, timeout: Answer(sent[url.rsplit("/", 1)[1]]))
    return SimpleNamespace(root=tiny.root, folder=tiny.root / "binarized_mnist", sent=sent,
                           images=tiny.images)


def test_a_download_is_the_files_bit_for_bit(server):
    for images, key in zip(bmnist_files(server.root, download=True)[0], ROWS, strict=True):
        assert torch.equal(images, torch.from_numpy(server.images[key])), key
    assert {file.name: file.read_bytes() for file in server.folder.iterdir()} == server.sent


def test_a_download_arrives_whole_or_not_at_all(server):
    server.sent["binarized_mnist_test.amat"] = server.sent["binarized_mnist_test.amat"][:-1]
    with pytest.raises(Unavailable, match="the server sent something else"):
        bmnist_files(server.root, download=True)
    assert sorted(path.name for path in server.folder.iterdir()) == [
        "binarized_mnist_train.amat", "binarized_mnist_valid.amat"]


def test_a_download_that_drags_on_is_given_up(server, monkeypatch):
    monkeypatch.setattr(fetch, "DOWNLOAD_LIMIT_S", -1)
    with pytest.raises(Unavailable, match="took over -1 s"):
        bmnist_files(server.root, download=True)
    assert not list(server.folder.iterdir())


def test_nothing_is_downloaded_unasked(server, monkeypatch):
    for load in (bmnist_files, mnist_files):
        with pytest.raises(Unavailable):
            load(server.root, download=False)
    assert not list(server.folder.iterdir())


def test_torchvisions_download_has_a_time_limit_and_leaves_none_behind(tmp_path, monkeypatch):
    seen, before = [], socket.getdefaulttimeout()

    def stuck(*args, **kwargs):
        seen.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no network in a test")

    monkeypatch.setattr(fetch, "MNIST", stuck)
    with pytest.raises(Unavailable, match="cannot be downloaded"):
        mnist_files(tmp_path, download=True)
    assert seen == [fetch.NETWORK_TIMEOUT_S] and socket.getdefaulttimeout() == before


# The real files ----------------------------------------------------------------------------------

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


@pytest.mark.skipif(not (REAL / "binarized_mnist").is_dir(), reason="no real data here")
def test_the_real_binary_files_are_three_different_splits():
    train, val, test = bmnist(REAL, dataset="bmnist")
    assert [len(split.images) for split in (train, val, test)] == [50_000, 10_000, 10_000]
    assert all(split.images.max() == 1 for split in (train, val, test))
    held_out = {image.tobytes() for image in val.images.numpy()}
    assert not held_out & {image.tobytes() for image in test.images.numpy()}


@pytest.mark.skipif(not (REAL / "MNIST").is_dir(), reason="no real data here")
def test_real_mnist_is_the_raw_file():
    parts = mnist(REAL, dataset="mnist")
    assert [len(split.images) for split in parts] == [50_000, 10_000, 10_000]
    for splits, name in ((parts[:2], "train"), (parts[2:], "t10k")):
        raw = (REAL / f"MNIST/raw/{name}-images-idx3-ubyte").read_bytes()[16:]
        assert b"".join(split.images.numpy().tobytes() for split in splits) == raw, name
        raw = (REAL / f"MNIST/raw/{name}-labels-idx1-ubyte").read_bytes()[8:]
        assert bytes(torch.cat([split.labels for split in splits]).tolist()) == raw, name
    assert parts[2].labels[:5].tolist() == [7, 2, 1, 0, 4]
