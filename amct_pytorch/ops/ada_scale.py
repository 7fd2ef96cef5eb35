"""The symmetric scale of a weight that AdaRound rounds to.

With 8 bits it is the search by Kullback-Leibler divergence of Migacz, "8-bit Inference with
TensorRT" (GTC 2017), on the histogram of a weight and over little clipping only; with fewer bits
the least squared error, as in the AdaRound paper, for there more clipping pays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._checks import check_dtype

_ops = torch.ops.amct_pytorch


def ada_scale(weight: Tensor, num_bits: int = 8, axis: int | None = None) -> Tensor:
    """A symmetric scale (float32, offset 0) for `weight`, b = num_bits.

    b >= 8: of the thresholds T = A (1 - i / 256), A = max |weight| and i = 0..19, the one whose
    histogram (512 bins over [-A, A], the values beyond T counted at the ends) is least changed, by
    Kullback-Leibler divergence, when its bins are merged into 2^b - 1 groups; scale = T / 2^(b-1).
    b < 8: of the scale of `arq` times k / 100, k = 100..30, the one with the least squared error
    of nearest rounding. A scale below the float32 epsilon, that of zeros too, becomes 1.

    `weight` is float32, float16 or bfloat16 of any shape and strides. The scale has shape []
    without `axis`, else [C], one per index of that dimension. Not differentiable. The search is on
    the host: a weight on CUDA is copied there.
    Raises TypeError for another dtype, ValueError for num_bits outside [2, 16], IndexError for an
    axis that `weight` does not have, RuntimeError for NaN or infinity.

    >>> import torch
    >>> ada_scale(torch.tensor([[0.5, -1.0], [0.0, 0.0]]), axis=0)  # 1 / 2^7, and none
    tensor([0.0078, 1.0000])
    """
    check_dtype("weight", weight)
    return _ops.ada_scale(weight.detach(), num_bits, axis)


@torch.library.register_fake("amct_pytorch::ada_scale")
def _(weight: Tensor, num_bits: int, axis: int | None) -> Tensor:
    return weight.new_empty([] if axis is None else [weight.size(axis)], dtype=torch.float32)
