"""What was learnt about each layer: the record file, its entries, and their checks."""

from .checks import OpType, RecordTarget
from .file import Records
from .layer import LayerRecord

__all__ = ["LayerRecord", "OpType", "RecordTarget", "Records"]
