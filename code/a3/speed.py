"""What a VAE's update on a CPU spends most on besides its matrix products, done faster.

The results are those of PyTorch's own functions up to rounding, and of dropout up to the random
numbers that are drawn.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 2**16  # values of the 16 random bits that decide about an element
LOWEST = -(2**63)  # random_ from here on draws all 64 bits of an int64


class _BinaryCrossEntropy(torch.autograd.Function):
    """The formula in place, and its known gradient: less goes through the memory."""

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        log_sigmoid = logits.abs().sigmoid_().log_()
        return logits.clamp(min=0).addcmul_(x, logits, value=-1).sub_(log_sigmoid)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        return logits.sigmoid().sub_(x).mul_(gradient), None


def binary_cross_entropy(logits: Tensor, x: Tensor) -> Tensor:
    """Return -x log f - (1 - x) log(1 - f), f = sigmoid(logits), of every element.

    Computed as max(l, 0) - x l - log sigmoid(|l|), which is finite for any logit l, since the
    sigmoid is at least 1/2. PyTorch's function takes log1p(exp(-|l|)) instead of the last term;
    ``log1p`` costs ten times as much as ``log``. The two differ by rounding.

    Args:
        logits: (..., B, D) real.
        x: (B, D) in [0, 1]; data, so it gets no gradient.

    Returns:
        (..., B, D) nats.
    """
    return _BinaryCrossEntropy.apply(logits, x)


class Dropout(nn.Dropout):
    """Dropout that decides about an element by 16 random bits, four elements a draw.

    The share that is set to 0 is p rounded to a multiple of 2^-16. The others are divided by the
    share that is kept then, so the expectation is exactly the input. A GPU uses PyTorch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return input, of any shape, with a share of its elements set to 0 in training."""
        dropped = round(self.p * LEVELS)
        if not self.training or input.device.type != "cpu" or not 0 < dropped < LEVELS:
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(LOWEST, None)
        bits = draws.view(torch.int16)[:input.numel()].view(input.shape)
        return input * (bits >= dropped - LEVELS // 2) * (LEVELS / (LEVELS - dropped))
