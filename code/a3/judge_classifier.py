"""The judges: networks that count samples by digit and give the features they are judged by.

There is no agreed feature network for MNIST, so Frechet distances by these compare only within
this repository. Their weights are part of it (code/weights, made by judges.py), so that everybody
judges alike; every result names its judges by the hash.
"""

import hashlib
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a3.judge_metrics import frechet_distance
from a3.records import RunError
from a3.runs import one_cycle, progress

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
# SHA-256 of the file of each: the classifiers of grey and of binary digits, and a network of the
# same form with random weights, by which no recipe was chosen.
JUDGES = {
    "grey": "1f97f158f9ddaaeda9e06877efdf25844c7a4ea6256918310eb66ca039674a5d",
    "binary": "ccf8d28471f806fb969faedd5cd8c12148ab8ebbe3048a6e0b69a9d331a6a2a8",
    "random": "6d7d1aac0ddcbaecff353c38ac3fc160646baecbce68c8459d9e2483c29f741a",
}
EPOCHS = 4
FEATURES = 128
DIGITS = ("mnist", "bmnist", "sample")  # sources of images
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


def judge(kind: str, device: str = "cpu", source: str = "mnist"
          ) -> tuple[DigitClassifier | None, dict]:
    """Return a committed judge, in eval mode, and the facts by which results name it.

    Args:
        kind: one of JUDGES.
        source: the name of the images that the samples are to be like. Judges know digits alone:
            for others there is none, None and nothing.

    Raises:
        RunError: its file is missing, or not the one that JUDGES names.
    """
    if source not in DIGITS:
        return None, {}
    file = WEIGHTS / f"{kind}-{JUDGES[kind][:8]}.pt"
    content = file.read_bytes() if file.exists() else b""
    if hashlib.sha256(content).hexdigest() != JUDGES[kind]:
        raise RunError(f"'{file}' is {'damaged' if content else 'missing'}, and nothing else may "
                       "judge samples; get it back with git checkout code/weights")
    held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):  # which weights it begins with does not matter
        network = DigitClassifier()
    network.load_state_dict(held["weights"])  # 16-bit numbers, in a network of 32-bit ones
    return network.to(device).eval().requires_grad_(False), {
        "classifier": file.stem, "classifier_sha256": JUDGES[kind],
        "classifier_test_accuracy": held["test_accuracy"]}


# Training ----------------------------------------------------------------------------------------

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


def judge_samples(classifier: DigitClassifier | None, samples: Tensor, val: Tensor, test: Tensor
                  ) -> dict:
    """Return how far samples are from real images, and which digits they show.

    Frechet distances of the samples to val, by which recipes may be chosen, and to test; and the
    floor: the distance of val to test, real images that neither G nor the classifier has seen.
    Without a classifier, nothing.
    """
    if classifier is None:
        return {}
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
