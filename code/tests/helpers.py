"""What several test modules use."""

import argparse
from pathlib import Path
from a3.cli import flags, parse

SMALL_FLOW = {"WIDTH": 8, "HEADS": 2, "LAYERS": 1, "CHANNELS": 8, "BLOCKS": 1}  # of nf_multiscale


def arguments(out: Path, *more: str) -> argparse.Namespace:
    """Return the parsed flags of a training that writes to ``out``."""
    parser = flags("a test", epochs=4, lr=1e-3, batch_size=8, sources=("bmnist", "sample"))
    return parse(parser, ["--out", str(out), "--device", "cpu", *more])
