"""Data sets, augmentation and the resumable training stream.

A sample is (image uint8 [3, H, W], labels uint8 [H, W]) with 255 ignored. Every data set has `classes` and `palette`.

`folders` reads your own pictures without code. Any other class is named by `{"class_path": "package.Class",
"init_args": {...}}`. It needs, at the least:

- `classes`, the class names: an attribute of the class, or an argument of its constructor.
- An argument `split`, and `__len__`.
- `__getitem__(index)` -> (image, labels): tensors [3, H, W], uint8, and [H, W], any integer dtype, with 255 ignored.

It may have `palette`, as `classes`: one (red, green, blue) per class; and `on_error`, see `Segmentation`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metricseg.data.base import IGNORE, BadSample, Segmentation
from metricseg.data.folders import ADE20K, BDD100K, CamVid, Cityscapes, Folders, PascalVOC, spread_palette
from metricseg.data.regions import Oversegmented, Regions
from metricseg.data.scenes import Scenes
from metricseg.data.stream import Augmented, EpochSampler
from metricseg.data.transforms import eval_transform, train_transform
from metricseg.utils.registry import Registry

DATASETS: Registry[Any] = Registry("data set")
for _name, _class in (
    ("ade20k", ADE20K),
    ("bdd100k", BDD100K),
    ("camvid", CamVid),
    ("cityscapes", Cityscapes),
    ("folders", Folders),
    ("scenes", Scenes),
    ("voc", PascalVOC),
):
    DATASETS.register(_name)(_class)

__all__ = [
    "ADE20K", "BDD100K", "DATASETS", "IGNORE", "Augmented", "BadSample", "CamVid", "Cityscapes", "EpochSampler",
    "Folders", "Oversegmented", "PascalVOC", "Regions", "Scenes", "Segmentation", "build_dataset", "class_names",
    "eval_transform", "train_transform",
]  # fmt: skip


def build_dataset(config: Mapping[str, Any] | str, split: str) -> Any:
    """Build the data set that `config` describes, e.g. {"name": "camvid", "root": "data/camvid"}, at `split`."""
    return DATASETS.build(config, split=split)


def class_names(config: Mapping[str, Any] | str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """(class names, one color per class) of that data set, known before any file is read.

    Raises ValueError if it has no classes, or not as many colors.
    """
    label, make, options = DATASETS.resolve(config)
    found = {name: options.get(name) or getattr(make, name, None) for name in ("classes", "palette")}
    classes, palette = found["classes"], found["palette"]
    if not classes or isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(
            f"data set {label!r} has no class names, got {classes!r}; they are an argument `classes` or an attribute "
            "of its class, e.g. --data.dataset.classes '[road, sky]'"
        )
    names = tuple(str(name) for name in classes)
    if len(names) > IGNORE or len(set(names)) < len(names):
        raise ValueError(f"data set {label!r} has the classes {list(names)}; they must differ and be at most {IGNORE}")
    colors = list(palette or spread_palette(len(names)))
    if len(colors) != len(names) or not all(len(color) == 3 and set(color) <= set(range(256)) for color in colors):
        raise ValueError(
            f"data set {label!r} has the palette {colors}; it takes three integers in [0, 255] for each of "
            f"{len(names)} classes"
        )
    return names, tuple((r, g, b) for r, g, b in colors)
