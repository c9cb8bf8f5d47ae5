"""The data are the named files bit for bit; anything else is refused."""

import contextlib
import gzip
import hashlib
import io
import os
import socket
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from a3 import fetch
from a3.fetch import (
    DataError,
    Unavailable,
    bmnist_files,
    data_folder,
    mnist_files,
    own_images,
)
from datasets import BINARIZATION_SEED, binarize, bmnist, mnist
from made_up import idx_of, own_arrays, own_files

REAL = Path(os.environ.get("A3_DATA", "no such folder"))
ROWS = {"train": 5, "valid": 3, "test": 2}


def amat(rows: int, seed: int) -> tuple[np.ndarray, bytes]:
    """Return random binary images and the bytes of their file, written digit by digit."""
    images = np.random.default_rng(seed).integers(0, 2, (rows, 784), dtype=np.uint8)
    lines = [" ".join(str(pixel) for pixel in image) for image in images]
    return images, ("\n".join(lines) + "\n").encode()


def published(content: bytes) -> tuple[int, str]:
    return len(content), hashlib.sha256(content).hexdigest()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data root with three small .amat files, whose hashes count as the published ones."""
    (tmp_path / "binarized_mnist").mkdir()
    images, contents = {}, {}
    for seed, (split, rows) in enumerate(ROWS.items()):
        name = f"binarized_mnist/binarized_mnist_{split}.amat"
        images[split], contents[name] = amat(rows, seed)
        (tmp_path / name).write_bytes(contents[name])
        monkeypatch.setitem(fetch.PUBLISHED, name, published(contents[name]))
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
    told = {"truncated": "is cut off: ", "shifted": "is not as published",
            "altered": "is not as published"}
    with pytest.raises(DataError, match=f"valid.amat' {told[damage]}"):
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


def test_packed_files_flat_in_the_data_folder_are_the_same_splits(tiny):
    for name, content in tiny.contents.items():
        (tiny.root / name).unlink()
        (tiny.root / f"{Path(name).name}.gz").write_bytes(gzip.compress(content))
    for images, key in zip(bmnist_files(tiny.root, download=False)[0], ROWS, strict=True):
        assert torch.equal(images, torch.from_numpy(tiny.images[key])), key


def test_files_in_folders_of_their_own_names_are_the_same_splits(tiny):
    for name, content in tiny.contents.items():
        (tiny.root / name).unlink()
        (tiny.root / name).mkdir()
        (tiny.root / name / Path(name).name).write_bytes(content)
    for images, key in zip(bmnist_files(tiny.root, download=False)[0], ROWS, strict=True):
        assert torch.equal(images, torch.from_numpy(tiny.images[key])), key


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
    with pytest.raises(Unavailable, match="is cut off"):
        bmnist_files(server.root, download=True)
    assert sorted(path.name for path in server.folder.iterdir()) == [
        "binarized_mnist_train.amat", "binarized_mnist_valid.amat"]


def test_a_folder_that_was_not_there_stays_only_with_a_file_in_it(server, tmp_path):
    root, whole = tmp_path / "no such" / "folder", dict(server.sent)
    server.sent |= dict.fromkeys(whole, b"")
    with pytest.raises(Unavailable, match="found there: nothing$"):
        bmnist_files(root, download=True)
    assert not root.parent.exists()
    server.sent |= whole
    bmnist_files(root, download=True)
    assert len(list((root / "binarized_mnist").iterdir())) == 3


def test_a_folder_that_cannot_be_written_is_named(server):
    server.folder.rmdir()
    server.folder.touch()
    with pytest.raises(Unavailable, match="train.amat' cannot be written"):
        bmnist_files(server.root, download=True)


def test_a_download_leaves_the_part_of_another_alone(server):
    part = server.folder / "binarized_mnist_train.amat.part"
    part.write_bytes(b"half")
    bmnist_files(server.root, download=True)
    assert part.read_bytes() == b"half"


def test_a_download_that_drags_on_is_given_up(server, monkeypatch):
    """A real server drips header or body, a byte at a time, or sends without end."""
    monkeypatch.undo()
    monkeypatch.setattr(fetch, "NETWORK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(fetch, "LEAST_BYTES", 1000)
    monkeypatch.setattr(fetch, "DOWNLOAD_LIMIT_S", 0.6)
    head = b"HTTP/1.0 200 OK\r\n\r\n"
    ways = {"header": (b"HTTP/1.0 200 OK\r\nA: " + b"a" * 10**6, 1, "less than 1,000 bytes"),
            "body": (head + b"b" * 10**6, 1, "less than 1,000 bytes"),
            "slow": (head + b"c" * 10**6, 2000, "took over 0.6 s"),
            "endless": (head + b"d" * 10**7, 10**5, "is not as published")}
    for sent, size, told in ways.values():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            def drip(listener=listener, sent=sent, size=size):
                with contextlib.suppress(OSError), listener.accept()[0] as connection:
                    connection.recv(1000)
                    for start in range(0, len(sent), size):
                        connection.sendall(sent[start:start + size])
                        time.sleep(0.05 if size < 10**5 else 0)

            threading.Thread(target=drip, daemon=True).start()
            started = time.monotonic()
            with pytest.raises(Unavailable, match=told):
                fetch._download([f"http://127.0.0.1:{listener.getsockname()[1]}/a"], server.root,
                                fetch.BMNIST_FILES[0])
            assert time.monotonic() - started < 5
    assert not list(server.folder.iterdir())


def test_nothing_is_downloaded_unasked(server, monkeypatch):
    for load in (bmnist_files, mnist_files):
        with pytest.raises(Unavailable):
            load(server.root, download=False)
    assert not list(server.folder.iterdir())


def test_a_download_never_writes_over_what_is_there(small, monkeypatch):
    """Another data set's files have MNIST's names: they are refused, and stay."""
    name = fetch.MNIST_FILES[0]
    other = gzip.compress(idx(9, 3, 28, 28))
    md5 = hashlib.md5(other, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(fetch.OTHERS, md5, "Fashion-MNIST")
    path = put(small.root, f"{name}.gz", other)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: pytest.fail(url))
    with pytest.raises(DataError, match="is Fashion-MNIST's, not MNIST's.*--data_root"):
        mnist_files(small.root, download=True)
    assert [file for file in small.root.rglob("*") if file.is_file()] == [path]
    assert path.read_bytes() == other


def test_a_missing_file_of_mnist_is_downloaded_and_the_others_stay(small, monkeypatch):
    for name, content in small.contents.items():
        put(small.root, f"{name}.gz", gzip.compress(content))
    lost = small.root / f"{fetch.MNIST_FILES[1]}.gz"
    sent = lost.read_bytes()
    lost.unlink()
    with pytest.raises(DataError, match="'train-labels-idx1-ubyte' is missing"):
        mnist_files(small.root, download=False)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Answer(sent))
    assert fetch._contents(small.root, fetch.MNIST_FILES, fetch.MNIST_PLACES, ["a/"],
                           ".gz") == list(small.contents.values())
    assert (small.root / fetch.MNIST_FILES[1]).read_bytes() == gzip.decompress(sent)


# MNIST's names, places and troubles --------------------------------------------------------------

def idx(seed: int, *shape: int) -> bytes:
    """Return an IDX file of random bytes."""
    header = np.array([0x800 + len(shape), *shape], ">u4").tobytes()
    return header + np.random.default_rng(seed).bytes(int(np.prod(shape)))


def put(root: Path, name: str, content: bytes) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
    return root / name


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An empty folder, and four small files whose hashes count as MNIST's."""
    contents = {name: idx(seed, *((3, 28, 28) if "images" in name else (3,)))
                for seed, name in enumerate(fetch.MNIST_FILES)}
    for name, content in contents.items():
        monkeypatch.setitem(fetch.PUBLISHED, name, published(content))
    return SimpleNamespace(root=tmp_path, contents=contents)


def read(small) -> list[bytes]:
    return fetch._contents(small.root, fetch.MNIST_FILES, fetch.MNIST_PLACES, [])


@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist", "raw", "."])
@pytest.mark.parametrize(("dot", "suffix"), [("-", ""), (".", ""), ("-", ".gz"), (".", ".GZ")])
def test_the_usual_names_and_places_are_found_and_only_read(small, folder, dot, suffix):
    for name, content in small.contents.items():
        stem = Path(name).name.replace("-idx", dot + "idx")
        put(small.root, f"{folder}/{stem}{suffix}",
            gzip.compress(content, 1) if suffix else content)
    before = sorted(small.root.rglob("*"))
    assert read(small) == list(small.contents.values())
    assert sorted(small.root.rglob("*")) == before, "nothing is unpacked beside the files"


@pytest.mark.parametrize(("suffix", "broken", "told"), [
    ("", lambda whole: b"", "is empty"),
    (".gz", lambda whole: b"", "is empty"),
    ("", lambda whole: whole[:1000], "is cut off: 1,000 of 2,368 bytes"),
    (".gz", lambda whole: gzip.compress(whole)[:1000], "is cut off"),
    (".gz", lambda whole: b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
    ("", lambda whole: idx(9, 3, 28, 28), "another IDX file, of 3 x 28 x 28 bytes"),
    ("", lambda whole: idx(9, 5, 32, 32), "another IDX file, of 5 x 32 x 32 bytes"),
    (".gz", lambda whole: gzip.compress(bytes(50_000_000), 1), "is not as published"),
])
def test_the_trouble_with_a_file_is_named_and_auto_stops(small, suffix, broken, told):
    for name, content in small.contents.items():
        put(small.root, name, content)
    name = fetch.MNIST_FILES[0]
    whole = (small.root / name).read_bytes()
    (small.root / name).unlink()
    put(small.root, name + suffix, broken(whole))
    for dataset in ("auto", "mnist"):
        with pytest.raises(DataError, match=told) as caught:
            mnist(small.root, dataset=dataset)
        assert f"'{small.root / name}{suffix}'" in str(caught.value)
        assert not isinstance(caught.value, Unavailable) and "\n" not in str(caught.value)
    put(small.root, Path(name).name, whole)
    assert read(small)[0] == whole, "a good copy elsewhere will do"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused_unread(small, make):
    path = small.root / "train-images-idx3-ubyte.gz"
    make(path)
    with pytest.raises(DataError, match="is not a regular file"):
        mnist_files(small.root, download=True)


def test_where_nothing_is_found_the_line_says_what_was_looked_for_and_what_is_there(small):
    put(small.root, "MNIST/images.zip", b"")
    with pytest.raises(Unavailable, match="looked under.*MNIST/raw.*train-images.*images.zip"):
        mnist_files(small.root, download=False)


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


# One's own images --------------------------------------------------------------------------------

OWN = own_arrays()


@pytest.mark.parametrize(("names", "packed", "place", "turned"), [
    (("train", "t10k"), True, ".", False), (("train", "t10k"), False, "raw", False),
    (("Train", "TEST"), False, ".", False), (("k49-train", "k49-test"), True, ".", False),
    (("emnist-digits-train", "emnist-digits-test"), True, "gzip", True)])
def test_ones_own_images_are_found_under_any_usual_name(names, packed, place, turned, tmp_path):
    folder = own_files(tmp_path / "own" / place, OWN, *names, packed=packed)
    if turned:  # the archive of EMNIST holds others besides
        for path in [*folder.iterdir()]:
            other = folder / path.name.replace("digits", "letters")
            other.write_bytes(path.read_bytes())
    train, val, test = mnist(dataset=str(tmp_path / "own"))
    assert [len(split.images) for split in (train, val, test)] == [100, 20, 40]
    for split, images, labels in ((train, OWN["train"][:100], OWN["train_labels"][:100]),
                                  (val, OWN["train"][100:], OWN["train_labels"][100:]),
                                  (test, OWN["test"], OWN["test_labels"])):
        upright = images.swapaxes(1, 2) if turned else images
        assert (split.images.numpy() == upright.reshape(-1, 784)).all()
        assert split.labels.tolist() == labels.tolist()
        assert split.source.name == f"from-own-{split.source.sha256[:6]}"


def test_ones_own_images_are_binarized_like_mnist(tmp_path):
    np.savez(tmp_path / "mine.npz", **OWN)
    for path in (tmp_path, tmp_path / "mine.npz"):
        grey, binary = (load(dataset=str(path)) for load in (mnist, bmnist))
        for i, (one, other) in enumerate(zip(grey, binary, strict=True)):
            assert torch.equal(other.images, binarize(one.images, BINARIZATION_SEED + i))
            assert torch.equal(other.labels, one.labels)


def test_a_sixth_is_held_out_but_never_more_than_ten_thousand(tmp_path):
    np.savez(tmp_path / "many.npz", train=np.zeros((60_006, 28, 28), np.uint8),
             test=np.zeros((10, 28, 28), np.uint8))
    images, labels, _ = own_images(tmp_path / "many.npz")
    assert [len(part) for part in images] == [50_006, 10_000, 10] and labels == (None,) * 3


@pytest.mark.parametrize(("change", "told"), [
    ({"train_labels": OWN["train_labels"] + 1}, "each split needs all of 0 to 9, and no others"),
    ({"test_labels": 0 * OWN["test_labels"]}, "each split needs all of 0 to 9, and no others"),
    ({"test_labels": None}, "there are none")])
def test_labels_that_are_no_ten_classes_are_left_out(change, told, tmp_path, capsys):
    arrays = {key: value for key, value in {**OWN, **change}.items() if value is not None}
    assert own_images(own_files(tmp_path / "own", arrays))[1] == (None,) * 3
    assert capsys.readouterr().out == (f"note: without labels ({told}), figures and numbers that "
                                       "need them are left out\n")


@pytest.mark.parametrize(("change", "told"), [
    ({"train": OWN["train"][:59], "train_labels": OWN["train_labels"][:59]},
     "has 59 train images, expected 60 or more"),
    ({"test": OWN["test"][:, 1:]}, "as test images 40 x 27 x 28 of uint8, expected N x 28 x 28"),
    ({"train_labels": OWN["train_labels"][1:]}, "train labels 119 of uint8, expected 120 whole")])
@pytest.mark.parametrize("kind", ["npz", "idx"])
def test_images_of_another_kind_are_refused_in_one_line(kind, change, told, tmp_path):
    arrays = {**OWN, **change}
    if kind == "idx":
        own_files(tmp_path / "own", arrays)
    else:
        (tmp_path / "own").mkdir()
        np.savez(tmp_path / "own/mine.npz", **arrays)
    with pytest.raises(DataError, match=told) as error:
        mnist(dataset=str(tmp_path / "own"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "told"), [
    (b"", "is not a whole IDX file"), (idx_of(OWN["train"])[:-1], "is not a whole IDX file"),
    (b"<html>", "is not a whole IDX file"), (b"\0\0\x08", "is not a whole IDX file"),
    (b"\0\0\x0d" + idx_of(OWN["train"])[3:], "is not a whole IDX file"),
    (gzip.compress(idx_of(OWN["train"]), 1)[:-9], "cannot be read"),
    (b"\x1f\x8bno", "cannot be read"), (None, "cannot be read")])
def test_damaged_idx_files_are_refused_in_one_line(content, told, tmp_path):
    folder = own_files(tmp_path / "own", OWN)
    path = folder / "train-images-idx3-ubyte.gz"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.gz' {told}") as error:
        mnist(dataset=str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "told"), [
    (b"PK\x03\x04 no", "cannot be read as an .npz"), (b"", "cannot be read as an .npz"),
    ({"x_train": OWN["train"]}, "has no array 'train', but x_train; expected train and test"),
    ({"train": np.array([None])}, "cannot be read as an .npz"),
    (b"\x93NUMPY\1\0\4\0{\0(\0", "cannot be read as an .npz"),  # as train.npy
    ({**OWN, "train": OWN["train"] / 255}, "of float64, expected N x 28 x 28 of uint8")])
def test_damaged_arrays_are_refused_in_one_line(content, told, tmp_path):
    file = tmp_path / "mine.npz"
    if isinstance(content, dict):
        np.savez(file, **content)
    elif b"NUMPY" in content:
        with zipfile.ZipFile(file, "w") as package:
            package.writestr("train.npy", content)
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match=told) as error:
        mnist(dataset=str(file))
    assert "\n" not in str(error.value)


def test_a_folder_of_no_or_of_several_data_sets_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images; expected train-images-idx3-ubyte"):
        mnist(dataset=str(tmp_path))
    own_files(tmp_path / "raw", OWN, "a-train", "a-test")
    own_files(tmp_path / "gzip", OWN, "b-train", "b-test")
    with pytest.raises(DataError, match="holds a and b images; expected"):
        mnist(dataset=str(tmp_path))


def test_packed_files_are_compared_with_the_published_ones_of_their_folders_name(
        tmp_path, monkeypatch, capsys):
    folder = own_files(tmp_path / "FashionMNIST/raw", OWN)
    own_images(folder)
    told = capsys.readouterr().out
    assert told.startswith("note: ") and told.count("\n") == 1
    assert all(path.name in told for path in folder.iterdir())
    assert "differ from FashionMNIST's published files" in told
    monkeypatch.setattr(fetch.FashionMNIST, "resources", [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in folder.iterdir()])
    own_images(folder)
    own_images(own_files(tmp_path / "mine", OWN))
    own_images(own_files(tmp_path / "kmnist", OWN, packed=False))
    assert capsys.readouterr().out == "", "nothing is published of others, or of unpacked files"
