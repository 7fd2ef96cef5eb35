"""What the activation messages of calibration and of KV caches share: fields of the algorithms."""

from __future__ import annotations

from typing import Any

from ..float32 import shortest
from .problems import Location
from .proto_text import decimal


def read_algorithm(field: str, message: Any) -> dict[str, Any]:
    """The keys of JSON that the message in `field`, ifmr_quantize or hfmg_quantize, stands for."""
    if field == "hfmg_quantize":
        return {"act_algo": "hfmg", "num_of_bins": message.num_of_bins}
    return {
        "act_algo": "ifmr",
        "max_percentile": decimal(message.max_percentile),
        "min_percentile": decimal(message.min_percentile),
        "search_range": shortest([message.search_range_start, message.search_range_end]),
        "search_step": decimal(message.search_step),
    }


def pair_field(pair: str, inside: Location) -> str:
    """The field that holds what is `inside` a pair: its first one for the pair as a whole.

    >>> pair_field("search_range", (1,)), pair_field("search_range", ())
    ('search_range_end', 'search_range_start')
    """
    return f"{pair}_{('start', 'end')[int(inside[0]) if inside else 0]}"
