"""Readers over generated folders in the standard layouts, and what they say about bad files."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchvision")
import torch
from PIL import Image
from torch.utils.data import DataLoader

from metricseg.data import ADE20K, BDD100K, Augmented, BadSample, CamVid, Cityscapes, PascalVOC, balance, build_dataset
from metricseg.data.base import lookup, read_image, read_labels
from metricseg.data.transforms import eval_transform, train_transform

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


def bdd100k(root: Path) -> Path:
    picture(root / "bdd100k/images/10k/train/a-b.jpg")
    label_map(root / "bdd100k/labels/sem_seg/masks/train/a-b.png", [0, 18, 255])
    label_map(root / "bdd100k/labels/sem_seg/colormaps/train/a-b.png", [200])
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
        (bdd100k, BDD100K, 19, {0, 18, 255}),
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


@pytest.mark.parametrize("name", ["camvid", "ade20k", "bdd100k", "cityscapes", "voc"])
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


def decompression_bomb(root: Path) -> None:
    Image.new("1", (20000, 20000)).save(root / "train/1.png")
    (root / "train/1.jpg").unlink()


def broken_chunk(root: Path) -> None:
    label_map(root / "trainannot/1.png", [0])
    file = root / "trainannot/1.png"
    file.write_bytes(file.read_bytes().replace(b"IDAT", b"IDAX"))


def floats(root: Path) -> None:
    Image.fromarray(np.zeros(SIZE, np.float32)).save(root / "train/1.jpg", format="TIFF")


def unturned(root: Path) -> None:
    """A label map of the pixels as stored, beside a picture that is shown turned."""
    save_turned(root / "train/1.jpg", np.zeros((*SIZE, 3), np.uint8), 6)


def unknown_label(root: Path) -> None:
    label_map(root / "trainannot/1.png", [0, 37])


def colored(root: Path) -> None:
    picture(root / "trainannot/1.png")


def save_turned(path: Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


SPOILED = pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, r"train/1\.jpg can't be read"),
        (other_size, r"trainannot/1\.png is 20 x 20 but its picture .*train/1\.jpg is 40 x 24"),
        (unturned, r"1\.png is 40 x 24 but .*1\.jpg is 24 x 40 when turned by its EXIF orientation \(6\)"),
        (unknown_label, r"trainannot/1\.png holds label 37; .* hold 0 to 11 and 255"),
        (colored, r"trainannot/1\.png holds RGB pixels"),
        (decompression_bomb, r"train/1\.png can't be read: .*decompression bomb"),
        (broken_chunk, r"trainannot/1\.png can't be read"),
        (floats, r"train/1\.jpg holds F pixels"),
    ],
)


@SPOILED
def test_bad_file_is_named_and_stops_or_is_skipped(tmp_path, spoil, words):
    spoil(camvid(tmp_path))
    with pytest.raises(BadSample, match=words):
        CamVid(tmp_path)[1]
    data = CamVid(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match=words):
        image, labels = data[1]
    assert bool((labels == 255).all()) and image.shape[-2:] == labels.shape[-2:]
    assert data[2][0].shape == (3, *SIZE)


@SPOILED
def test_a_skipped_sample_fits_into_its_batch(tmp_path, spoil, words):
    spoil(camvid(tmp_path))
    data = CamVid(tmp_path, on_error="skip")
    for transform in (eval_transform(), train_transform((16, 16))):
        with pytest.warns(UserWarning, match=words):
            images, labels = next(iter(DataLoader(Augmented(data, transform), batch_size=3)))
        assert images.shape[-2:] == labels.shape[-2:]
        assert bool((labels[1] == 255).all()) and bool((labels[0] != 255).any())


def test_any_error_of_a_sample_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(CamVid, "read", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        CamVid(camvid(tmp_path))[1]
    with pytest.warns(UserWarning, match=r"train/1\.jpg\): division by zero"):
        assert bool((CamVid(tmp_path, on_error="skip")[1][1] == 255).all())


def test_an_index_out_of_range_is_no_bad_sample(tmp_path):
    assert len(list(CamVid(camvid(tmp_path), on_error="skip"))) == 3


def test_data_set_without_classes_refuses_every_label(tmp_path):
    label_map(tmp_path / "a.png", [255, 7])
    with pytest.raises(BadSample, match=r"a\.png holds label 7; the files of this data set hold 255"):
        read_labels(tmp_path / "a.png", lookup({}))


def weigh(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["balance", "--dataset", "camvid", *arguments])
    balance.main()
    return capsys.readouterr().out


def test_class_weights_of_the_readable_samples(tmp_path, monkeypatch, capsys):
    weights = weigh(monkeypatch, capsys, "--root", str(camvid(tmp_path)))
    truncate(tmp_path)
    with pytest.raises(BadSample, match=r"train/1\.jpg"):
        weigh(monkeypatch, capsys, "--root", str(tmp_path))
    with pytest.warns(UserWarning, match=r"train/1\.jpg"):
        assert weigh(monkeypatch, capsys, "--root", str(tmp_path), "--on_error", "skip") == weights
    with pytest.raises(ValueError, match="at least one labeled pixel"):
        balance.balanced_weights(np.zeros(3))


def test_gray_with_16_bits_is_scaled(tmp_path):
    pixels = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[1].tolist() == [[0, 0, 1, 1, 128, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_pictures(tmp_path, orientation):
    """The file is stored so that it is shown as `shown`."""
    shown = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    back = (None, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.swapaxes(0, 1), np.rot90,
            lambda a: np.rot90(a, 2).swapaxes(0, 1), lambda a: np.rot90(a, 3))[orientation - 1]  # fmt: skip
    camvid(tmp_path, 1)
    (tmp_path / "train/0.jpg").unlink()
    save_turned(tmp_path / "train/0.png", np.ascontiguousarray(back(shown) if back else shown), orientation)
    image, labels = CamVid(tmp_path)[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), shown) and labels.shape == SIZE


def test_white_of_a_1_bit_mask_is_255(tmp_path):
    mask = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 3 == 0
    camvid(tmp_path, 1)
    Image.fromarray(mask).save(tmp_path / "trainannot/0.png")
    assert np.array_equal(CamVid(tmp_path)[0][1].numpy(), np.where(mask, 255, 0))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(camvid, CamVid), (ade20k, ADE20K), (cityscapes, Cityscapes), (bdd100k, BDD100K), (voc, PascalVOC)],
)
def test_hidden_files_are_left_out_and_upper_case_endings_are_found(tmp_path, make, kind):
    expected = kind(make(tmp_path))[0]
    for file in [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.jpg")]:
        file.with_name(f"._{file.name}").touch()
        file.rename(file.with_suffix(file.suffix.upper()))
    for folder in [path for path in tmp_path.rglob("*") if path.is_dir()]:
        (folder / ".DS_Store").touch()
    data = kind(tmp_path)
    assert len(data) == (3 if kind is CamVid else 1)
    assert all(torch.equal(a, b) for a, b in zip(data[0], expected, strict=True))


def test_train_ids_in_a_file_of_ids(tmp_path):
    label_map(cityscapes(tmp_path) / "gtFine/train/ulm/ulm_0_gtFine_labelIds.png", [0, 18, 255])
    with pytest.raises(BadSample, match=r"labelIds\.png holds label 255; .* hold 0 to 33"):
        Cityscapes(tmp_path)[0]


def test_missing_folder_of_bdd100k_says_what_is_expected(tmp_path):
    """Pictures without the labels: either level of the archive may be the root, and both give the same pictures."""
    assert BDD100K(bdd100k(tmp_path)).images == BDD100K(tmp_path / "bdd100k").images
    words = r"bdd100k/labels/sem_seg/masks/train is missing\. Expected: ROOT/images/10k/SPLIT/NAME\.jpg with "
    (tmp_path / "bdd100k/labels").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/{words}"):
        BDD100K(tmp_path)


def test_cityscapes_in_order_of_city_and_name(tmp_path):
    for city, number in (("ulm", 1), ("ulm", 0), ("aachen", 2)):
        stem = f"train/{city}/{city}_{number}"
        picture(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png")
        label_map(tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png", [7])
    names = [path.stem for path in Cityscapes(tmp_path).images]
    assert names == ["aachen_2_leftImg8bit", "ulm_0_leftImg8bit", "ulm_1_leftImg8bit"]


def test_on_error_is_checked(tmp_path):
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        CamVid(camvid(tmp_path), on_error="ignore")


def test_unknown_data_set_lists_the_known():
    with pytest.raises(ValueError, match="ade20k, bdd100k, camvid, cityscapes, folders, scenes, voc"):
        build_dataset({"name": "kitti"}, "train")


@pytest.mark.skipif("METRICSEG_CAMVID" not in os.environ, reason="METRICSEG_CAMVID names no CamVid folder")
def test_real_camvid():
    root = os.environ["METRICSEG_CAMVID"]
    assert (len(CamVid(root, "train")), len(CamVid(root, "val"))) == (367, 101)
    image, labels = CamVid(root, "val")[0]
    assert image.shape == (3, 360, 480) and int(labels[labels != 255].max()) < 11
