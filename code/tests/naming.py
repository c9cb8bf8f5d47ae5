"""The name that a script gives its run, found without the run."""

import argparse
import sys
from types import ModuleType

import pytest
import torch

from a3 import cli
from datasets import Source, Split

TIMES = {"epoch_seconds": 1.0, "floor_seconds": 1.0, "ratio": 1.0, "images": 1, "precision": "",
         "data": {"name": "mnist"}}


class Named(Exception):
    """Carries the name of a run that does not begin."""


def name_of(script: ModuleType, argv: list[str]) -> tuple[str, argparse.ArgumentParser]:
    """Return how a script's ``main`` names a run with these flags, and the parser of its flags.

    Whatever comes before the name is made up: images, trained models, measured times. The source
    of the images is called as ``--dataset`` says, "auto" too.
    """
    parsers = []

    def parse(parser: argparse.ArgumentParser, *rest) -> argparse.Namespace:
        parsers.append(parser)
        return cli.parse(parser, *rest)

    def stop(*args, **kwargs):
        raise Named(cli.run_name(*args, **kwargs))

    def load(*args, dataset: str = "auto", **kwargs) -> tuple[Split, Split, Split]:
        return 3 * (Split(torch.zeros(12, 784, dtype=torch.uint8), Source(dataset, "", "")),)

    stubs = {"parse": parse, "run_name": stop, "mnist": load, "bmnist": load,
             "report_folder": lambda *_: None, "labelled": lambda *_: True,
             "run_cases": lambda *_: [], "collected": lambda *_: [], "load_models": lambda *_: {},
             "trained_vae": lambda *_: (None, {"data": {"name": "mnist"},
                                               "flags": {"dataset": "auto"}}),
             "make": lambda *_: stop("judges", argparse.Namespace(changed={})),
             "time_training": lambda *_: TIMES, "time_start": lambda *_: {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", script)  # it may not be installed
        for name, stub in stubs.items():
            if hasattr(script, name):
                patch.setattr(script, name, stub)
        with pytest.raises(Named) as named:
            script.main(argv)
    return named.value.args[0], parsers[-1]
