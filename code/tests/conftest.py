"""What all tests share, whatever the folder in which pytest is started."""

import signal
import sys
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

# Also without the settings of pyproject.toml, which pytest does not find from the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# A shell lets what it starts with "&" ignore Ctrl-C, which tests send to processes of their own.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, and nothing left behind.
HYPOTHESIS_HOME = tempfile.TemporaryDirectory()
set_hypothesis_home_dir(HYPOTHESIS_HOME.name)
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def pytest_configure(config) -> None:
    """Let a warning of NumPy fail there too."""
    config.addinivalue_line("filterwarnings", "error::RuntimeWarning")
