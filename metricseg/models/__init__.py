"""Networks, built from a configuration by name: `build_model({"name": "deeplabv3plus", "num_classes": 19})`."""

from collections.abc import Mapping
from typing import Any

from metricseg.models.backbone import WeightsMismatch, compare_weights
from metricseg.models.base import MODELS, Segmenter
from metricseg.models.ccsnet import CCSNet
from metricseg.models.deeplab import DeepLabV3Plus
from metricseg.models.dmlseg import DMLSeg

__all__ = [
    "MODELS",
    "CCSNet",
    "DMLSeg",
    "DeepLabV3Plus",
    "Segmenter",
    "WeightsMismatch",
    "build_model",
    "compare_weights",
]


def build_model(config: Mapping[str, Any] | str) -> Segmenter:
    """The network that `config` describes; see `metricseg.registry.Registry.build`."""
    return MODELS.build(config)
