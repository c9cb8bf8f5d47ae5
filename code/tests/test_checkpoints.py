"""Checkpoints as files: how they are verified, who may write them. Their life: test_runs.py."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from a3 import checkpoints
from a3.records import RunError


def state() -> dict:
    """Return the parts of a checkpoint after one epoch."""
    return {"kept": {"model": {"w": torch.ones(3)}}, "history": [{"epoch": 0, "seconds": 1.0}],
            "snapshots": {0: {"samples": torch.zeros(2)}}, "flags": {"lr": 0.1}, "data": "0",
            "provenance": [{"device": "cpu"}], "random": {}}


def test_a_checkpoint_ends_in_its_sha256_and_torch_still_reads_it(tmp_path):
    checkpoints.save(state(), path := tmp_path / "new" / "last.pt")
    content = path.read_bytes()
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()
    read = checkpoints.read(path)
    assert read.keys() == torch.load(path, weights_only=True).keys() == state().keys()
    assert torch.equal(read["kept"]["model"]["w"], torch.ones(3))


def test_every_flipped_bit_is_found(tmp_path):
    checkpoints.save(state(), path := tmp_path / "last.pt")
    content = path.read_bytes()
    for place in range(0, len(content), 29):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1:])
        with pytest.raises(RunError, match="cannot be read as a checkpoint"):
            checkpoints.load(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"),
                                  lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR),
                                                           50 * 2**30)])
def test_what_is_no_checkpoint_is_refused_unread(tmp_path, make):
    make(path := tmp_path / "last.pt")
    with pytest.raises(RunError, match="cannot be read as a checkpoint"):
        checkpoints.read(path)


def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    checkpoints.save({**state(), "kept": Harm()}, path := tmp_path / "last.pt")
    with pytest.raises(RunError, match="cannot be read as a checkpoint"):
        checkpoints.read(path)
    assert not (tmp_path / "harm").exists()


def test_the_last_but_one_is_kept(tmp_path):
    path = tmp_path / "last.pt"
    for value in (0.0, 1.0, 2.0):
        checkpoints.write(path, {**state(), "flags": {"lr": value}})
    assert checkpoints.read(path)["flags"]["lr"] == 2
    assert checkpoints.read(tmp_path / "previous.pt")["flags"]["lr"] == 1
    assert {file.name for file in tmp_path.iterdir()} == {"last.pt", "previous.pt"}


def test_the_hash_of_weights_tells_values_names_shapes_and_types_apart():
    weights = nn.Linear(2, 3).state_dict()
    others = [{**weights, "bias": weights["bias"] + 1e-6}, {"bias": weights["bias"]},
              {**weights, "weight": weights["weight"].reshape(2, 3)},
              {**weights, "bias": weights["bias"].double()},
              {"weight": weights["weight"], "b": weights["bias"]}]
    hashes = [checkpoints.weights_sha256(one) for one in (weights, *others)]
    assert len(set(hashes)) == len(hashes)
    again = {key: value.clone() for key, value in weights.items()}
    assert checkpoints.weights_sha256(again) == hashes[0]
    assert len(checkpoints.weights_sha256({"a": torch.tensor(1), "b": torch.zeros(0)})) == 64


@pytest.mark.skipif(checkpoints.fcntl is None, reason="needs the locks of Unix")
def test_a_process_that_owns_a_folder_may_own_it_again_and_gives_it_back(tmp_path):
    def other() -> int:
        lock = str(tmp_path / "lock")
        code = f"import fcntl; fcntl.flock(open({lock!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        return subprocess.run([sys.executable, "-c", code], capture_output=True,
                              check=False).returncode

    checkpoints.own(tmp_path)
    checkpoints.own(tmp_path)
    assert (tmp_path / "lock").read_text().startswith(f"{os.getpid()} on ")
    assert other() != 0
    checkpoints.disown(tmp_path)
    assert other() == 0
    checkpoints.disown(tmp_path)
