"""What all tests share."""

import tempfile

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

# The same examples on every run, and nothing left behind.
HYPOTHESIS_HOME = tempfile.TemporaryDirectory()
set_hypothesis_home_dir(HYPOTHESIS_HOME.name)
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")
