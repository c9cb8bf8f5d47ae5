"""Ctrl-C and SIGTERM: they end a program in one line, but wait while a file is written.

The package imports this module before all others, since those take seconds to import and a stop
then should end in one line too. It needs the standard library alone.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; ``status`` is the exit status that a shell gives to such an end."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.status = 128 + number


class Hold:
    """``with held:`` lets Ctrl-C and SIGTERM wait until its end, if somebody is ``listening``."""

    def __init__(self):
        self.depth, self.waiting = 0, []

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *_):
        self.depth -= 1
        if self.waiting and not self.depth:
            number = self.waiting[0]
            self.waiting.clear()
            raise Stopped(number)

    def stop(self, number: int, frame) -> None:
        """Handle a signal: raise now, or when nothing is written any more."""
        if not self.depth:
            raise Stopped(number)
        self.waiting.append(number)


held = Hold()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise ``Stopped``; a signal that the parent ignores stays ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, held.stop) for number in SIGNALS
                  if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame) -> None:
    print("\nstopped", flush=True)
    os._exit(128 + number)


# An exception would not do: some packages turn it into an ImportError of their own.
if Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve().parent == \
        Path(__file__).resolve().parents[1]:
    for _number in SIGNALS:
        if signal.getsignal(_number) != signal.SIG_IGN:
            signal.signal(_number, _end)
