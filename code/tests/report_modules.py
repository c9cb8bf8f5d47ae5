"""The modules of the report's folder, which is not on the path."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[2]
REPORT = REPOSITORY / "report"


def module(name: str) -> ModuleType:
    """Load a module of the report's folder, once, after the one that all of them import."""
    if name not in sys.modules:
        if name != "sources":
            module("sources")
        spec = importlib.util.spec_from_file_location(name, REPORT / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
