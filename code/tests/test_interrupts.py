"""Ctrl-C and SIGTERM: in one line during the imports, and never in the middle of a write."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from a3.interrupts import Stopped, held, listening

CODE = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path for path in CODE.glob("*.py") if "exit_with(main)" in path.read_text())


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_stop_in_the_imports_ends_in_one_line(script, number, status, tmp_path):
    """A package in the place of torch sends the signal while it is imported."""
    (tmp_path / "torch.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{number})\ntime.sleep(20)\n")
    child = subprocess.run([sys.executable, script], cwd=CODE, capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (status, "\nstopped\n", "")


def test_the_scripts_are_those_that_are_stopped():
    assert len(SCRIPTS) >= 7, SCRIPTS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_until_the_outermost_hold_ends(number):
    done = []
    with listening(), pytest.raises(Stopped) as stop, held:
        with held:
            signal.raise_signal(number)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"] and stop.value.status == 128 + number
    with held:  # nothing is waiting any more
        pass


def test_signals_are_as_before_after_listening():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped), listening():
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_the_parent_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
