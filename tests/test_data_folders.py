"""Readers over generated folders in the standard layouts, and what they say about bad files."""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchvision")
import torch
from PIL import Image

from metricseg.data import ADE20K, BadSample, CamVid, Cityscapes, PascalVOC, build_dataset

SIZE = (24, 40)


def picture(path: Path, size=SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def label_map(path: Path, values, size=SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), size)).save(path)


def camvid(root: Path, count=3, values=(0, 3, 10, 11)) -> Path:
    for k in range(count):
        picture(root / "train" / f"{k}.jpg")
        label_map(root / "trainannot" / f"{k}.png", values)
    return root


def ade20k(root: Path) -> Path:
    picture(root / "images/training/a.jpg")
    label_map(root / "annotations/training/a.png", [0, 1, 150])
    return root


def cityscapes(root: Path) -> Path:
    picture(root / "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png")
    for kind in ("labelIds", "instanceIds", "color"):
        label_map(root / f"gtFine/train/ulm/ulm_0_gtFine_{kind}.png", [0, 7, 8, 33, 34 - 5])
    return root


def voc(root: Path) -> Path:
    base = root / "VOCdevkit/VOC2012"
    picture(base / "JPEGImages/a.jpg")
    label_map(base / "SegmentationClass/a.png", [0, 20, 255])
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/train.txt").write_text("a\n")
    return root


@pytest.mark.parametrize(
    ("make", "kind", "classes", "labels"),
    [
        (camvid, CamVid, 11, {0, 3, 10, 255}),
        (ade20k, ADE20K, 150, {255, 0, 149}),
        (cityscapes, Cityscapes, 19, {255, 0, 1, 18}),
        (voc, PascalVOC, 21, {0, 20, 255}),
    ],
)
def test_layout_and_label_mapping(tmp_path, make, kind, classes, labels):
    data = kind(make(tmp_path))
    image, target = data[0]
    assert image.shape == (3, *SIZE) and image.dtype == torch.uint8
    assert target.shape == SIZE and target.dtype == torch.uint8
    assert set(target.unique().tolist()) == labels
    assert len(data.classes) == len(data.palette) == classes
    assert len(set(data.palette)) == classes


@pytest.mark.parametrize("name", ["camvid", "ade20k", "cityscapes", "voc"])
def test_missing_folder_names_the_path_and_the_source(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.* is missing\. .*http"):
        build_dataset({"name": name, "root": str(tmp_path)}, "train")


def test_missing_label_map_is_named(tmp_path):
    camvid(tmp_path)
    (tmp_path / "trainannot/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"trainannot/1\.png is missing"):
        CamVid(tmp_path)


def test_empty_folder(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no"):
        CamVid(tmp_path)


def truncate(root: Path) -> None:
    file = root / "train/1.jpg"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_size(root: Path) -> None:
    label_map(root / "trainannot/1.png", [0], (20, 20))


def unknown_label(root: Path) -> None:
    label_map(root / "trainannot/1.png", [0, 37])


def coloured(root: Path) -> None:
    picture(root / "trainannot/1.png")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, r"train/1\.jpg can't be read"),
        (other_size, r"trainannot/1\.png is 20 x 20 but its picture .*train/1\.jpg is 40 x 24"),
        (unknown_label, r"trainannot/1\.png holds label 37"),
        (coloured, r"trainannot/1\.png holds RGB pixels"),
    ],
)
def test_bad_file_is_named_and_stops_or_is_skipped(tmp_path, spoil, words):
    spoil(camvid(tmp_path))
    with pytest.raises(BadSample, match=words):
        CamVid(tmp_path)[1]
    data = CamVid(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match=words):
        image, labels = data[1]
    assert bool((labels == 255).all()) and image.shape[-2:] == labels.shape[-2:]
    assert data[2][0].shape == (3, *SIZE)


def test_on_error_is_checked(tmp_path):
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        CamVid(camvid(tmp_path), on_error="ignore")


def test_unknown_data_set_lists_the_known():
    with pytest.raises(ValueError, match="ade20k, camvid, cityscapes, scenes, voc"):
        build_dataset({"name": "kitti"}, "train")


@pytest.mark.skipif("METRICSEG_CAMVID" not in os.environ, reason="METRICSEG_CAMVID names no CamVid folder")
def test_real_camvid():
    root = os.environ["METRICSEG_CAMVID"]
    assert (len(CamVid(root, "train")), len(CamVid(root, "val"))) == (367, 101)
    image, labels = CamVid(root, "val")[0]
    assert image.shape == (3, 360, 480) and int(labels[labels != 255].max()) < 11
