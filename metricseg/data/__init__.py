"""Data sets, augmentation and the resumable training stream.

A sample is (image uint8 [3, H, W], labels uint8 [H, W]) with 255 ignored. Every data set has `classes` and `palette`.
"""

from collections.abc import Mapping
from typing import Any

from metricseg.data.base import IGNORE, BadSample, Segmentation
from metricseg.data.folders import ADE20K, CamVid, Cityscapes, PascalVOC
from metricseg.data.scenes import Scenes
from metricseg.data.stream import Augmented, EpochSampler
from metricseg.data.transforms import eval_transform, train_transform
from metricseg.registry import Registry

DATASETS: Registry[Any] = Registry("data set")
for _name, _class in (
    ("ade20k", ADE20K),
    ("camvid", CamVid),
    ("cityscapes", Cityscapes),
    ("scenes", Scenes),
    ("voc", PascalVOC),
):
    DATASETS.register(_name)(_class)

__all__ = [
    "ADE20K", "DATASETS", "IGNORE", "Augmented", "BadSample", "CamVid", "Cityscapes", "EpochSampler", "PascalVOC",
    "Scenes", "Segmentation", "build_dataset", "dataset_class", "eval_transform", "train_transform",
]  # fmt: skip


def build_dataset(config: Mapping[str, Any], split: str) -> Any:
    """The data set that `config` describes, e.g. {"name": "camvid", "root": "data/camvid"}, at `split`."""
    return DATASETS.build({**config, "split": split})


def dataset_class(config: Mapping[str, Any]) -> Any:
    """The class of that data set, whose `classes` and `palette` are known before any file is."""
    name = config.get("name")
    if name not in DATASETS.entries:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(sorted(DATASETS.entries))}")
    return DATASETS.entries[name]
