"""Reading the state of a training that was saved with torch.save."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

EXTRA = "_extra_state"  # what a module's get_extra_state returns, of any type
COUNT = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside its module
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def load_checkpoint(path: str, name: str | None) -> dict[str, Any]:
    """The state dict in the file `path`, or under the key `name` in it.

    Raises FileNotFoundError for a missing file, KeyError for a missing `name`, RuntimeError for a
    file that holds no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # of many kinds, some of which say nothing of the file
        reason = (str(error).splitlines() or [""])[0][:60]
        raise RuntimeError(
            f"{path}: expected what torch.save(model.state_dict(), ...) wrote, got a file that "
            f"cannot be read as tensors and numbers ({type(error).__name__}: {reason})"
        ) from error
    if name is not None:
        if not isinstance(content, dict) or name not in content:
            keys = ", ".join(map(repr, content)) if isinstance(content, dict) else "no dictionary"
            raise KeyError(f"{path}: state_dict_name {name!r} is missing; the file has {keys}")
        content = content[name]
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) or key.endswith(EXTRA) for key, value in content.items()
    ):
        found = f"keys {list(content)[:5]}" if isinstance(content, dict) else type(content).__name__
        raise RuntimeError(
            f"{path}: expected a state dict, names to tensors, got {found}; give state_dict_name "
            "if it stands under a key"
        )
    return content


def without_wrappers(state: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`state` without the prefixes of wrappers, for a model that has the state `names`.

    A layer may have the name of a wrapper: where a name fits, nothing is taken off.
    """
    state = {k: v for k, v in state.items() if k != COUNT or k in names}
    for prefix in WRAPPERS:
        if state and all(k.startswith(prefix) and k not in names for k in state):
            return without_wrappers({k.removeprefix(prefix): v for k, v in state.items()}, names)
    return state
