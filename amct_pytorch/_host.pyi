import numpy as np
from numpy.typing import NDArray

def pack_int4(codes: NDArray[np.int8], axis: int) -> NDArray[np.int8]:
    """Pairs of codes along `axis` as bytes, even index in the low nibble; the axis is halved.

    TypeError for another dtype, IndexError for an axis that is not there, ValueError for an odd
    size along it or codes outside [-8, 7].
    """

def dequant_words(
    scale: NDArray[np.float32], offset: NDArray[np.int8], shift: NDArray[np.uint8]
) -> NDArray[np.uint64]:
    """AscendDequant parameters [n]: bits 31..0 scale, 39..32 shift N, 47..40 offset_w.

    TypeError for another dtype, ValueError unless all three are 1-d of one length.
    """

def unpack_dequant_words(
    words: NDArray[np.uint64],
) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.uint8]]:
    """(scale, offset, shift) of AscendDequant parameters [n]."""

def build_info() -> dict[str, str]:
    """compiler, cxx_standard ("C++17") and torch_floor, the oldest torch it loads in ("2.10")."""
