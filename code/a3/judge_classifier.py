"""A digit classifier, which counts samples by digit and gives the features they are judged by.

There is no agreed feature network for MNIST, so Frechet distances by this one compare only within
this repository. Every result that uses it records its test accuracy and the hash of its weights.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a3 import checkpoints
from a3.judge_metrics import frechet_distance
from a3.runs import RunError, one_cycle, progress

EPOCHS = 4
FEATURES = 128
CLEAR = 0.9  # an image counts as clear if its likeliest digit is more probable than this


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

    def features(self, x: Tensor) -> Tensor:
        """Return the activations of the last layer but one, (B, 128)."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the ten digits, (B, 10)."""
        return self.head(self.features(x))


# Training ----------------------------------------------------------------------------------------

def trained_classifier(train, test, folder: Path, kind: str = "") -> tuple[DigitClassifier, dict]:
    """Return the classifier, in eval mode, and its facts; trained once, then read from disk.

    Args:
        train, test: Splits with labels, pixels in 0..255.
        folder: where it is kept between runs.
        kind: goes into the file's name, if the images are not MNIST itself.

    Returns:
        the network, and a dict with its test accuracy and the SHA-256 of its weights.

    Raises:
        RunError: the file is damaged.
    """
    device = train.images.device
    file = folder / f"digit-classifier-{'-'.join(filter(None, (train.source.name, kind)))}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # everybody compares by one network
        classifier = DigitClassifier().to(device)
        if file.exists():
            try:
                classifier.load_state_dict(checkpoints.load(file))
            except Exception as error:  # whatever a damaged or older file makes torch raise
                raise RunError(f"'{file}' cannot be read as the digit classifier "
                               f"({type(error).__name__}); delete it") from error
        else:
            print(f"training the digit classifier, once: {file.name}", flush=True)
            fit(classifier, train)
            checkpoints.save(classifier.state_dict(), file)
    classifier.eval().requires_grad_(False)
    digits, _ = classify(classifier, test.images / 255)
    weights = b"".join(value.cpu().numpy().tobytes() for value in classifier.state_dict().values())
    return classifier, {
        "classifier_test_accuracy": (digits == test.labels).float().mean().item(),
        "classifier_sha256": hashlib.sha256(weights).hexdigest()}


def fit(classifier: DigitClassifier, data) -> None:
    """Train by cross-entropy on a Split of labelled images, shuffled independently of it."""
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3, fused=True)
    one_cycle(optimizer, EPOCHS * len(data))
    classifier.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(data.images)).to(data.images.device)
        for index in progress(order.split(data.batch_size)):
            logits = classifier(data.images[index] / 255)  # (B, 10)
            optimizer.zero_grad()
            F.cross_entropy(logits, data.labels[index]).backward()
            optimizer.step()


# Judging images: all are (N, 784) grey values in [0, 1] ------------------------------------------

@torch.no_grad()
def classify(classifier: DigitClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest digit of each image and its probability, each (N,)."""
    logits = torch.cat([classifier(batch) for batch in images.split(1000)])  # (N, 10)
    probability, digit = logits.softmax(dim=1).max(dim=1)
    return digit, probability


@torch.no_grad()
def features(classifier: DigitClassifier, images: Tensor) -> Tensor:
    """Return the features of all images, (N, 128) float64 on the CPU."""
    rows = [classifier.features(batch) for batch in images.split(1000)]
    return torch.cat(rows).cpu().double()


def judge_samples(classifier: DigitClassifier, samples: Tensor, val: Tensor, test: Tensor
                  ) -> dict:
    """Return how far samples are from real images, and which digits they show.

    Frechet distances of the samples to val, by which recipes may be chosen, and to test; and the
    floor: the distance of val to test, real images that neither G nor the classifier has seen.
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
