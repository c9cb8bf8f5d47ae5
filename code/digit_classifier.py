"""A digit classifier, by which samples are counted, judged and compared.

There is no agreed feature network for MNIST, so Frechet distances by this one compare only within
this repository; every result that uses it records its test accuracy and the hash of its weights.

    python code/digit_classifier.py         # 1 min on 2 cores: 99 % of the test digits are right
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli import device_name, exit_with
from datasets import REPOSITORY, Split, binarize, mnist
from runs import RunError, one_cycle, progress, write_atomically
from sample_metrics import frechet_distance

EPOCHS = 4
FEATURES = 128
CLEAR = 0.9  # probability of its likeliest digit from which an image counts as a clear one


class DigitClassifier(nn.Module):
    """Two convolutions and two linear layers; the last but one gives the features.

    All inputs are (B, 784) grey values in [0, 1].
    """

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),  # (B, 16, 14, 14)
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),  # (B, 32, 7, 7)
            nn.Flatten(), nn.Linear(32 * 7 * 7, FEATURES), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(FEATURES, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, (B, 128)."""
        return self.body(x)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of the ten digits, (B, 10)."""
        return self.head(self.body(x))


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------

def trained_classifier(data_root: str | Path | None, dataset: str, device: str,
                       folder: Path = REPOSITORY / "checkpoints", binary: bool = False
                       ) -> tuple[DigitClassifier, dict]:
    """Return the classifier, in eval mode, and its facts; trained once, then read from disk.

    Args:
        dataset: "mnist" or "sample", as for ``datasets.mnist``.
        folder: where it is kept between runs.
        binary: train and test on binary images, drawn once from the grey ones.

    Returns:
        the network, and a dict with its test accuracy and the SHA-256 of its weights.
    """
    train, _, test = mnist(data_root, dataset=dataset, device=device)
    if binary:
        for seed, split in enumerate((train, test)):
            split.images = 255 * binarize(split.images, seed)
    kind = "-binary" if binary else ""
    file = folder / f"digit-classifier-{train.source.name}{kind}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # one network for all who compare by it
        classifier = DigitClassifier().to(device)
        if file.exists():
            try:
                classifier.load_state_dict(
                    torch.load(file, map_location=device, weights_only=True))
            except Exception as error:  # whatever a damaged or older file makes torch raise
                raise RunError(f"'{file}' cannot be read as the digit classifier "
                               f"({type(error).__name__}); delete it") from error
        else:
            print(f"training the digit classifier{kind}, once", flush=True)
            fit(classifier, train)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda out: torch.save(classifier.state_dict(), out))
    classifier.eval().requires_grad_(False)
    digits, _ = classify(classifier, test.images / 255)
    weights = b"".join(value.cpu().numpy().tobytes() for value in classifier.state_dict().values())
    return classifier, {
        "classifier_test_accuracy": (digits == test.labels).float().mean().item(),
        "classifier_sha256": hashlib.sha256(weights).hexdigest()}


def fit(classifier: DigitClassifier, data: Split) -> None:
    """Train by cross-entropy on the labelled training images, in an order of its own."""
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3, fused=True)
    scheduler = one_cycle(optimizer, EPOCHS * len(data))
    classifier.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(data.images)).to(data.images.device)
        for index in progress(order.split(data.batch_size)):
            logits = classifier.logits(data.images[index] / 255)
            optimizer.zero_grad()
            F.cross_entropy(logits, data.labels[index]).backward()
            optimizer.step()
            scheduler.step()


# ---------------------------------------------------------------------------------------------
# Judging images: all are (N, 784) grey values in [0, 1]
# ---------------------------------------------------------------------------------------------

@torch.no_grad()
def classify(classifier: DigitClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest digit of each image and its probability, each (N,)."""
    logits = torch.cat([classifier.logits(batch) for batch in images.split(1000)])
    probability, digit = logits.softmax(dim=1).max(dim=1)
    return digit, probability


@torch.no_grad()
def features(classifier: DigitClassifier, images: Tensor) -> Tensor:
    """Return the features of all images, (N, 128) float64 on the CPU."""
    return torch.cat([classifier(batch) for batch in images.split(1000)]).cpu().double()


def sample_quality(classifier: DigitClassifier, samples: Tensor, val: Tensor, test: Tensor
                   ) -> dict:
    """Return how far samples are from real images, and which digits they are.

    Frechet distances of the samples to val, by which recipes may be chosen, and to test; and, as
    the floor, of val to test: what real images score that neither G nor the classifier has seen.
    """
    digits, probability = classify(classifier, samples)
    shares = (digits.bincount(minlength=10) / len(digits)).tolist()
    sampled, seen, unseen = (features(classifier, images) for images in (samples, val, test))
    return {"frechet_distance": frechet_distance(sampled, unseen),
            "val_frechet_distance": frechet_distance(sampled, seen),
            "frechet_floor": frechet_distance(seen, unseen),
            "samples": len(samples),
            "class_shares": shares,
            "smallest_class_share": min(shares),
            "classes_found": sum(share > 0 for share in shares),
            "clear_share": (probability > CLEAR).float().mean().item()}


def main(argv: Sequence[str] | None = None) -> dict:
    """Train the classifier, or read it, and print its test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_root", default=None, metavar="DIR")
    parser.add_argument("--dataset", choices=("auto", "mnist", "sample"), default="auto")
    parser.add_argument("--device", type=device_name, default="auto")
    _, facts = trained_classifier(**vars(parser.parse_args(argv)))
    print(f"test accuracy {100 * facts['classifier_test_accuracy']:.2f} %")
    return facts


if __name__ == "__main__":
    exit_with(main)
