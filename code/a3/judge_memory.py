"""Memorisation: is a sample nearer to the training images than unseen images are?

    ratio = distance to the nearest training image / distance to the nearest unseen image,

one number a sample: 0 for a copy, about the same for samples and unseen images where nothing was
memorised (below 1 where there are more training images). Distances are Euclidean, of pixels in
[0, 1]; a sample is also tried moved by a pixel a side, since a copy moved so is as far from its
original as another digit is. What is usual is learnt from real images that nobody trained on.
"""

from pathlib import Path

import torch
from torch import Tensor

from a3 import figures
from a3.judge_metrics import nearest

USUAL_SHARE = 0.01  # of unseen images count as too near
SAMPLES = 2000  # nine moves of these against 50,000 images take half a minute on 2 cores


class Memory:
    """What one model trained on, and how near to it unseen images come.

    Args:
        train: (M, 784), the images that the model was trained on, in [0, 1].
        unseen: (K, 784), images that it was not trained on.
        usual: (N, 784), further such images: every second one gives the threshold, the others
            say what share of unseen images is below it.
        moves: (S, 784) source pixels of the moves to try.

    Attributes:
        threshold: the ratio below which USUAL_SHARE of unseen images are.
        unseen_ratios: of the images that did not give the threshold.
    """

    def __init__(self, train: Tensor, unseen: Tensor, usual: Tensor, moves: Tensor):
        self.train, self.unseen, self.moves = train, unseen, moves
        ratios = self.ratios(usual)
        self.threshold = torch.quantile(ratios[::2], USUAL_SHARE)
        self.unseen_ratios = ratios[1::2]

    def ratios(self, images: Tensor) -> Tensor:
        """Return the ratio of each image, (N,) on the CPU."""
        images = images.to(self.train.device)
        own, other = (nearest(images, split, self.moves)[0] for split in (self.train, self.unseen))
        return (own / other.clamp(min=1e-6)).cpu()

    def numbers(self, ratios: Tensor) -> dict[str, float]:
        """Return the share of ratios below the threshold, and their median."""
        return {"nearer_to_train_share": (ratios < self.threshold).float().mean().item(),
                "nearest_train_ratio_median": ratios.median().item()}

    def judged(self, kinds: dict[str, Tensor], filename: Path | None = None) -> dict[str, float]:
        """Return the numbers of several kinds of images, and of the unseen ones.

        Args:
            kinds: images (N, 784) by what the names of their numbers begin with; "": the samples.
            filename: of a plot of the samples' ratios beside the unseen ones.
        """
        ratios = {kind: self.ratios(images) for kind, images in kinds.items()}
        ratios["unseen_"] = self.unseen_ratios
        if filename:
            save_ratios({"samples": ratios[""], "unseen images": ratios["unseen_"]}, filename)
        return {f"{kind}{key}": value for kind, some in ratios.items()
                for key, value in self.numbers(some).items()}


def save_ratios(ratios: dict[str, Tensor], filename: Path) -> None:
    """Plot the share of images below each ratio, a line for each of two kinds of images."""
    with figures.canvas(filename, width=2.2, height=1.8) as axis:
        for (label, values), style in zip(ratios.items(), (figures.TRAIN, figures.VAL),
                                          strict=True):
            shares = torch.arange(1, len(values) + 1) / len(values)
            axis.plot(values.sort().values, shares, label=label, **style)
        axis.set(xlabel="nearest training / unseen", ylabel="share below", xlim=(0, None))
        axis.legend(loc="upper left")
