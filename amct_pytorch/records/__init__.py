"""What was learnt about each layer: the record file, its entries, and their checks."""

from .checks import OpType, RecordTarget
from .diff import Difference, RecordsDiff
from .file import Records
from .kv_cache import KVCacheRecord
from .layer import LayerRecord

__all__ = [
    "Difference",
    "KVCacheRecord",
    "LayerRecord",
    "OpType",
    "RecordTarget",
    "Records",
    "RecordsDiff",
]
