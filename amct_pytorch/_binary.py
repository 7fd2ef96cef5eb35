"""Loads the compiled modules: importing this one registers the ops with torch."""

from importlib import import_module
from importlib.util import find_spec

import torch

# import_module, for `from . import _C` would tell of a circular import where the file is missing.
try:
    import_module("._C", __package__)
    import_module("._host", __package__)
    if torch.version.cuda and find_spec("._C_cuda", __package__):
        import_module("._C_cuda", __package__)
except ImportError as error:
    raise ImportError(
        f"the compiled modules of amct_pytorch cannot be loaded under torch {torch.__version__} "
        f"({error}); build them for this Python, in the folder of the sources, with "
        "`pip install --no-build-isolation --no-deps --force-reinstall .` "
        "(torch 2.10 or later, a C++17 compiler)"
    ) from None

from . import _host as host

__all__ = ["host"]
