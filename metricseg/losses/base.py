"""The names of the losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from metricseg.registry import Registry

LOSSES: Registry[nn.Module] = Registry("loss")


def build_loss(config: Mapping[str, Any] | str) -> nn.Module:
    """The loss that `config` describes: `build_loss({"name": "focal", "gamma": 1.5})`, or with `class_path` one from
    elsewhere.

    Raises ValueError for an unknown name or argument.
    """
    return LOSSES.build(config)
