"""Loads the compiled ops; importing this module registers them with torch."""

import importlib.util

import torch

try:
    from . import _C  # type: ignore[attr-defined]  # noqa: F401

    if torch.version.cuda and importlib.util.find_spec("amct_pytorch._C_cuda"):
        from . import _C_cuda  # type: ignore[attr-defined]  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the compiled ops of amct_pytorch cannot be loaded under torch {torch.__version__} "
        f"({error}); build them for this Python with "
        "`pip install --no-build-isolation --force-reinstall --no-deps amct_pytorch` "
        "(torch 2.10 or later, a C++17 compiler)"
    ) from None
