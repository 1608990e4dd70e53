"""Networks, built from a configuration by name: `build_model({"name": "deeplabv3plus", "num_classes": 19})`."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from metricseg.models.backbone import WeightsMismatch, compare_weights
from metricseg.models.bank import PrototypeBank, read_bank, write_bank
from metricseg.models.base import MODELS, ModuleSegmenter, Segmenter
from metricseg.models.ccsnet import CCSNet
from metricseg.models.deeplab import DeepLabV3Plus
from metricseg.models.dmlseg import DMLSeg
from metricseg.models.scrseg import SCRSeg
from metricseg.models.segsort import SegSort
from metricseg.utils.registry import parameters

__all__ = [
    "MODELS",
    "CCSNet",
    "DMLSeg",
    "DeepLabV3Plus",
    "ModuleSegmenter",
    "PrototypeBank",
    "SCRSeg",
    "SegSort",
    "Segmenter",
    "WeightsMismatch",
    "build_model",
    "compare_weights",
    "read_bank",
    "write_bank",
]


def build_model(config: Mapping[str, Any] | str, num_classes: int | None = None) -> Segmenter:
    """Build the network that `config` describes; see `metricseg.utils.registry.Registry.build`.

    `num_classes` is added to its arguments, as `num_classes` or, for segmentation_models_pytorch, as `classes`; a class
    from elsewhere that takes neither is built without. A module that is no `Segmenter` becomes a `ModuleSegmenter`.
    """
    label, make, options = MODELS.resolve(config)
    number = [name for name in ("num_classes", "classes") if name in parameters(make)][:1]
    if num_classes is None:
        num_classes = next((options[name] for name in number if name in options), None)
    model: Any = MODELS.build(config, **{name: num_classes for name in number if num_classes is not None})
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {label!r} is a {type(model).__name__}; it takes a torch.nn.Module")
    return model if isinstance(model, Segmenter) else ModuleSegmenter(model, num_classes)
