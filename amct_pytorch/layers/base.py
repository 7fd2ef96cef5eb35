"""The base of all modules that stand for a layer of the user's model."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn


class Processed:
    """Marks the modules of this package that a float model does not have."""


class AmctLayer(nn.Module, Processed):
    """A stand-in for the layer `name`, which it holds at the path HELD_AS."""

    HELD_AS: ClassVar[tuple[str, ...]] = ("sub_module",)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __getattr__(self, name: str) -> Any:
        """Attributes of the layer it stands for: models read `weight` or `in_features`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            held: nn.Module = self
            for part in self.HELD_AS:
                held = held.__dict__["_modules"].get(part)
                if held is None:  # half unpickled
                    raise
            return getattr(held, name)

    def first_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The activation the layer is called on."""
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{self.name}: expected to be called on a torch.Tensor, got {type(x).__name__}"
            )
        return x

    def extra_repr(self) -> str:
        return f"name={self.name!r}"


def check_not_processed(model: nn.Module) -> None:
    """Raises RuntimeError when `model` already holds stand-ins of this package."""
    found = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, Processed)
    }
    if found:
        listed = ", ".join(
            f"{name or '(the model itself)'}: {kind}" for name, kind in found.items()
        )
        raise RuntimeError(
            f"the model was already processed by amct_pytorch ({listed}); pass the float model"
        )
