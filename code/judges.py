"""Make the judges of samples anew: three small networks with 16-bit weights, for code/weights.

Two are trained to classify digits, grey and binary ones; the third keeps its random weights. A
file's name begins with the kind and goes on with its hash, so a judge made anew stands beside the
committed one; to judge by it, put its hash into JUDGES of a3/judge_classifier.py. Numbers by two
judges do not compare.

    python code/judges.py                          # 4 min on 2 cores; needs MNIST
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from a3.cli import exit_with, parse, tool_flags

import torch

from a3.judge_classifier import JUDGES, WEIGHTS, DigitClassifier, classify, fit
from a3.records import write_atomically
from datasets import Split, binarize, mnist

SEED = 0


def make(kind: str, train: Split, test: Split) -> tuple[bytes, float]:
    """Return the file of a judge and its accuracy on test images, as the file's weights give it.

    Args:
        kind: one of JUDGES.
        train, test: Splits with labels, pixels in 0..255.
    """
    torch.manual_seed(SEED)
    network = DigitClassifier().to(train.images.device)
    if kind != "random":
        fit(network, train)
    weights = {key: value.cpu().half() for key, value in network.state_dict().items()}
    network.load_state_dict(weights)
    digits, _ = classify(network.eval(), test.images / 255)
    accuracy = (digits == test.labels).float().mean().item()
    content = io.BytesIO()
    torch.save({"weights": weights, "test_accuracy": accuracy}, content)
    return content.getvalue(), accuracy


def main(argv: Sequence[str] | None = None) -> dict[str, Path]:
    """Make the judges and say what they are called; return their files."""
    args = parse(tool_flags("Make the judges of samples anew.", ("mnist", "sample"),
                            out="for the weights (None: code/weights/)"), argv)
    grey = mnist(args.data_root, dataset=args.dataset, device=args.device)[::2]
    binary = [Split(255 * binarize(split.images, seed), split.source, split.labels)
              for seed, split in enumerate(grey)]
    folder, files = args.out or WEIGHTS, {}
    folder.mkdir(parents=True, exist_ok=True)
    for kind in JUDGES:
        content, accuracy = make(kind, *(binary if kind == "binary" else grey))
        digest = hashlib.sha256(content).hexdigest()
        files[kind] = folder / f"{kind}-{digest[:8]}.pt"
        write_atomically(files[kind], content)
        print(f"{files[kind]}: test accuracy {accuracy:.4f}, SHA-256 {digest}", flush=True)
    return files


if __name__ == "__main__":
    exit_with(main)
