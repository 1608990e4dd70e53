"""The names of the losses, and the class that all of them extend."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from metricseg.utils.registry import Registry

LOSSES: Registry[nn.Module] = Registry("loss")


class Loss(nn.Module):
    """A module whose constructor may pass `**options` on to its base class: `inspect.signature` lists these too."""

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        own = list(inspect.signature(cls.__init__).parameters.values())[1:]
        if own and own[-1].kind is inspect.Parameter.VAR_KEYWORD:
            inherited = inspect.signature(cls.__mro__[1]).parameters.values()
            names = {parameter.name for parameter in own}
            own[-1:] = [p for p in inherited if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in names]
        cls.__signature__ = inspect.Signature(own)

    def extra_repr(self) -> str:
        """The arguments of the class itself, and inherited ones that differ from their defaults."""
        shown = []
        for name, parameter in self.__signature__.parameters.items():
            value = getattr(self, name, parameter.default)
            if isinstance(value, nn.Module):
                continue
            if isinstance(value, Tensor):
                value = [round(float(v), 4) for v in value]
            own = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and value is not None
            if own or value != parameter.default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


def build_loss(config: Mapping[str, Any] | str) -> nn.Module:
    """The loss that `config` describes: `build_loss({"name": "focal", "gamma": 1.5})`, or with `class_path` one from
    elsewhere.

    Raises ValueError for an unknown name or argument.
    """
    return LOSSES.build(config)
