"""Any timm network as a feature extractor, with weights from timm or from a local file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from timm.models import load_state_dict
from torch import Tensor, nn

STAGES = (4, 8, 16, 32)  # strides


class WeightsMismatch(ValueError):
    """Weights that don't fit a network; the message lists the keys that are missing, unexpected, or of another
    shape."""


def compare_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raise WeightsMismatch unless `found` has the keys and the shapes of `expected`.

    Batch counters (`num_batches_tracked`) may be absent: they play no part in what a network computes.
    """
    absent = [k for k in expected if k not in found and not k.endswith("num_batches_tracked")]
    extra = [k for k in found if k not in expected]
    shapes = [
        f"{k} {tuple(found[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if k in found and found[k].shape != v.shape
    ]
    kinds = (("missing", absent), ("unexpected", extra), ("of another shape", shapes))
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}" for kind, keys in kinds if keys
    ]
    if problems:
        raise WeightsMismatch(f"{what}: {'; '.join(problems)}")


def check_file(name: str, path: Path, options: Mapping[str, Any]) -> None:
    """Raise unless the weights file at `path` fits timm's `name`. A classifier may be in it or not."""
    if not path.is_file():
        raise FileNotFoundError(f"the backbone's weights file {path} is missing")
    try:
        found = load_state_dict(str(path), use_ema=False)
    except Exception as error:
        raise WeightsMismatch(f"{path} is no readable .safetensors or .pth file of weights: {error}") from error
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0, **options)
    heads = network.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    body = {k: v for k, v in found.items() if not (prefixes and k.startswith(prefixes))}
    compare_weights(network.state_dict(), body, f"{path} doesn't fit {name}")


class Backbone(nn.Module):
    """A timm network cut into feature levels: a picture in, its stride-4 features and its deepest features out.

    Args:
        name: any timm model that can be made with `features_only=True`.
        output_stride: pixels per cell of the deepest features: 8, 16 or 32.
        pretrained: take timm's own weights (downloads them).
        weights: a local .safetensors or .pth file of the network's weights instead; it must fit, see `WeightsMismatch`.
        options: more arguments for `timm.create_model`, e.g. `drop_path_rate`.

    Raises ValueError if there is no such network, if its weights can't be fetched, or if it can't be run at that stride
    or has no stride-4 features.
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        pretrained: bool = False,
        weights: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride is {output_stride}; it takes 8, 16 or 32")
        extra = dict(options or {})
        try:
            if weights is not None:
                check_file(name, Path(weights), extra)
            if output_stride != 32:
                extra["output_stride"] = output_stride
            if weights is not None:
                extra["pretrained_cfg_overlay"] = {"file": str(weights), "num_classes": -1}
            make = partial(timm.create_model, name, pretrained=pretrained or weights is not None, features_only=True)
            try:
                self.body, self.multiple = make(**{"strict_img_size": False, **extra}), 4
            except TypeError as error:  # only networks of patches, e.g. Swin, have a size that is fixed otherwise
                if "strict_img_size" not in str(error):
                    raise
                self.body, self.multiple = make(**extra), 1
        except WeightsMismatch:
            raise
        except OSError as error:
            if not pretrained or weights is not None:
                raise
            raise ValueError(
                f"the pretrained weights of {name!r} can't be fetched (a file of them can be given as weights): {error}"
            ) from error
        except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
            raise ValueError(
                f"timm can't make {name!r} with features at output stride {output_stride}: {error}"
            ) from error
        strides, channels = self.body.feature_info.reduction(), self.body.feature_info.channels()
        if strides[-1] != output_stride or 4 not in strides:
            raise ValueError(f"{name} has features at strides {strides}; 4 and {output_stride} are needed")
        self.channels_last = getattr(self.body, "output_fmt", None) == Format.NHWC  # e.g. Swin and MambaOut
        self.levels = {stride: level for level, stride in enumerate(strides)}  # the deepest of each stride
        self.channels = {stride: channels[level] for stride, level in self.levels.items()}
        self.shallow_channels, self.deep_channels = self.channels[4], channels[-1]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> stride-4 features [B, C4, H/4, W/4] and the deepest ones [B, C, H/output_stride,
        W/output_stride]."""
        features = self.features(images)
        return features[self.levels[4]], features[-1]

    def stages(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> features at strides 4, 8, 16 and 32."""
        features = self.features(images)
        return [features[self.levels[stride]] for stride in STAGES]

    @property
    def stage_channels(self) -> list[int]:
        """Channels of `stages`; ValueError if the network lacks one of the strides."""
        if missing := [stride for stride in STAGES if stride not in self.channels]:
            raise ValueError(f"the backbone has features at strides {list(self.channels)}; {missing} are needed, too")
        return [self.channels[stride] for stride in STAGES]

    def features(self, images: Tensor) -> list[Tensor]:
        """Every level, channels first."""
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        features = self.body(images)
        return [x.permute(0, 3, 1, 2) for x in features] if self.channels_last else list(features)
