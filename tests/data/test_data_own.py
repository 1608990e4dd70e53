"""Data sets of your own: folders with class names, any class by its path, and pictures to predict."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from metricseg.data import Augmented, BadSample, balance, build_dataset, class_names
from metricseg.data.module import Pictures, SegmentationData
from metricseg.data.stream import WholePictures
from metricseg.data.transforms import eval_transform, train_transform

OWN = {"class_path": f"{__name__}.Squares"}


class Squares(Dataset):
    """The minimum of a data set: plain tensors, labels int64."""

    classes = ("ground", "square")

    def __init__(self, split, length=6, size=40):
        self.split, self.length, self.size = split, length, size

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        labels = torch.zeros(self.size, self.size, dtype=torch.int64)
        labels[index : index + 10, 5:15] = 1
        return (labels * 200).to(torch.uint8).expand(3, -1, -1), labels


class Named(Squares):
    classes = ()

    def __init__(self, split, classes, palette=None):
        super().__init__(split)


def save(path: Path, values, mode=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8), mode).save(path)


def folders(root: Path, values=(0, 1, 255), splits=("train", "val")) -> dict:
    """The configuration of a data set of two pictures a split, whose label maps hold `values`."""
    for split in splits:
        for name in ("a.jpg", "b.png"):
            save(root / "images" / split / name, np.full((24, 40, 3), 90))
            save(root / "labels" / split / f"{name[0]}.png", np.resize(values, (24, 40)))
    return {"name": "folders", "root": str(root), "classes": ["road", "sky"]}


def test_folders(tmp_path):
    config = folders(tmp_path)
    data = build_dataset(config, "val")
    image, labels = data[1]
    assert len(data) == 2 and image.shape == (3, 24, 40) and set(labels.unique().tolist()) == {0, 1, 255}
    assert data.images[0] == tmp_path / "images/val/a.jpg" and tuple(data.classes) == ("road", "sky")
    assert class_names(config) == (("road", "sky"), ((0, 0, 0), (128, 0, 0)))
    palette = [[1, 2, 3], [4, 5, 6]]
    assert class_names({**config, "palette": palette})[1] == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ("stored", "options", "expected"),
    [
        ((0, 1, 11), {"ignore_value": 11}, {0, 1, 255}),
        ((0, 1, 2), {"ignore_value": 0, "values": [1, 2]}, {255, 0, 1}),
        ((0, 255), {"ignore_value": None, "values": [0, 255]}, {0, 1}),
        ((0, 1, 255), {"ignore_value": None}, {0, 1, 255}),
    ],
)
def test_stored_values_of_classes(tmp_path, stored, options, expected):
    data = build_dataset({**folders(tmp_path, stored), **options}, "train")
    assert set(data[0][1].unique().tolist()) == expected


@pytest.mark.parametrize(
    "options", [{"values": [0]}, {"values": [0, 0]}, {"values": [0, 256]}, {"values": [0, 255]}, {"ignore_value": 1}]
)
def test_values_that_do_not_fit(tmp_path, options):
    with pytest.raises(ValueError, match="values are .* and ignore_value is .* for 2 classes; they take one value"):
        build_dataset({**folders(tmp_path), **options}, "train")


def test_folders_say_what_is_missing(tmp_path):
    config = folders(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"images/test is missing\. Expected: ROOT/images/SPLIT/NAME\.jpg"):
        build_dataset(config, "test")
    (tmp_path / "labels/val/a.png").rename(tmp_path / "labels/val/z.png")
    with pytest.raises(FileNotFoundError, match=r"images/val holds a without a counterpart in .*labels/val\. Expected"):
        build_dataset(config, "val")
    (tmp_path / "images/val/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/val holds z without a counterpart in .*images/val"):
        build_dataset(config, "val")
    for file in (*(tmp_path / "images/val").iterdir(), *(tmp_path / "labels/val").iterdir()):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="images/val holds no"):
        build_dataset(config, "val")
    save(tmp_path / "labels/train/b.png", np.zeros((9, 9)))
    with pytest.raises(BadSample, match=r"labels/train/b\.png is 9 x 9 but its picture .*b\.png is 40 x 24"):
        build_dataset(config, "train")[1]
    save(tmp_path / "labels/train/b.png", np.full((24, 40), 7))
    with pytest.raises(BadSample, match=r"b\.png holds label 7; .* hold 0 to 1 and 255"):
        build_dataset(config, "train")[1]
    with pytest.raises(ValueError, match="missing 1 required .*'root'; its arguments are root, classes, split"):
        build_dataset({"name": "folders", "classes": ["a"]}, "train")


@pytest.mark.parametrize("config", [OWN, {"class_path": f"{__name__}.Named", "init_args": {"classes": ["a", "b"]}}])
def test_own_class_by_its_path(config):
    """Plain tensors are cropped alike: the white pixels are those of the square."""
    data = SegmentationData(config, crop=(32, 32), batch_size=2)
    assert data.num_classes == 2 and len(data.palette) == 2
    for loader, shape in ((data.train_dataloader(), (2, 32, 32)), (data.val_dataloader(), (1, 40, 40))):
        images, labels = next(iter(loader))
        assert labels.shape == shape and images.dtype == torch.float32 and bool((labels == 1).any())
        inside = labels == 1
        assert images[:, 0][inside].min() > images[:, 0][labels == 0].min()
    assert build_dataset(config, "val").split == "val"


class Strange(Squares):
    def __init__(self, split, sample):
        super().__init__(split)
        self.sample = sample

    def __getitem__(self, index):
        return self.sample


IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ((IMAGE.numpy(), IMAGE[0]), "sample 3: a sample is a pair of tensors, .*; got ndarray"),
        ((IMAGE, IMAGE), r"image \[3, H, W\] and labels \[H, W\]; got \(3, 8, 8\)"),
        ((IMAGE.permute(1, 2, 0), IMAGE[0]), r"image is \[8, 8, 3\] and labels are \[8, 8\]"),
        ((IMAGE, IMAGE[0, :4]), r"image is \[3, 8, 8\] and labels are \[4, 8\]"),
        ((IMAGE, IMAGE[0].float()), "labels are torch.float32; they take integers"),
    ],
)
def test_what_is_no_sample_is_named(sample, words):
    with pytest.raises(BadSample, match=words):
        Augmented(Strange("train", sample), eval_transform())[3]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"class_path": f"{__name__}.Named"}, r"no class names, got \(\); .* --data\.dataset\.classes"),
        ({**OWN, "init_args": {"classes": "road"}}, "no class names, got 'road'"),
        ({**OWN, "init_args": {"classes": ["a", "a"]}}, r"has the classes \['a', 'a'\]; they must differ"),
        ({**OWN, "init_args": {"palette": [[0, 0, 0]]}}, r"has the palette \[\[0, 0, 0\]\]; .* each of 2 classes"),
        ({**OWN, "init_args": {"palette": [[0, 0, 0], [0, 0, 256]]}}, "it takes three integers"),
        ({"name": ["scenes"]}, r"no data set is called \['scenes'\]; there are ade20k"),
        ({"class_path": f"{__name__}.Nothing"}, "Nothing' can't be imported"),
    ],
)
def test_data_sets_without_usable_classes(config, words):
    with pytest.raises(ValueError, match=words):
        SegmentationData(config)


def test_unknown_argument_lists_the_known():
    with pytest.raises(ValueError, match=r"'lenght'; its arguments are split, length, size"):
        build_dataset({**OWN, "init_args": {"lenght": 3}}, "train")


def test_one_class_is_a_warning():
    with pytest.warns(UserWarning, match="the data set has one class, 'road': .* mIoU is 1"):
        SegmentationData({"name": "folders", "root": "nowhere", "classes": ["road"]})


def fail_at(bad, transform, fails):
    def call(image, labels):
        if image.float().mean() == bad and (fails is None or labels.shape in fails):
            raise MemoryError("too large")
        return transform(image, labels)

    return call


@pytest.mark.parametrize("fails", [None, [(24, 40)]], ids=["once", "at its size"])
def test_errors_of_the_transform_are_skipped_too(tmp_path, fails):
    config = folders(tmp_path)
    save(tmp_path / "images/train/b.png", np.full((24, 40, 3), 50))
    transform = fail_at(50, train_transform((16, 16)), fails)
    with pytest.raises(BadSample, match=r"sample 1 \(.*images/train/b\.png\): too large"):
        Augmented(build_dataset(config, "train"), transform)[1]
    data = Augmented(build_dataset({**config, "on_error": "skip"}, "train"), transform)
    with pytest.warns(UserWarning, match=r"skipped sample 1 \(.*b\.png\): too large"):
        images, labels = next(iter(DataLoader(data, 2)))
    assert bool((labels[1] == 255).all()) and bool((labels[0] != 255).any()) and images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("short_side", [None, 12])
def test_batches_of_unequal_pictures_name_them(tmp_path, short_side):
    data = SegmentationData(folders(tmp_path), eval_batch_size=2, short_side=short_side)
    assert next(iter(data.val_dataloader()))[1].shape == (2, 24, 40)
    for kind, shape in (("images", (48, 80, 3)), ("labels", (48, 80))):
        save(tmp_path / kind / "val/b.png", np.zeros(shape))
    words = r"a\.jpg\) is 40 x 24 but sample 1 \(.*b\.png\) is 80 x 48; .* take --data\.eval_batch_size 1"
    with pytest.raises(BadSample, match=words):
        next(iter(data.val_dataloader()))
    assert len(list(SegmentationData(folders(tmp_path)).val_dataloader())) == 2


def test_whole_pictures_in_batches_are_those_of_one_at_a_time():
    data = WholePictures(Squares("val"), eval_transform())
    for position, (image, labels) in enumerate(data.__getitems__([0, 1, 2])):
        assert torch.equal(image, data[position][0]) and torch.equal(labels, data[position][1])


def test_pictures_to_predict_skip_bad_and_hidden_files(tmp_path):
    for name in ("a.png", "c.JPG"):
        save(tmp_path / name, np.full((8, 9, 3), 7))
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "._a.png").write_bytes(b"no picture")
    assert [file.name for file in Pictures(tmp_path, eval_transform()).files] == ["a.png", "b.png", "c.JPG"]
    with pytest.raises(BadSample, match=r"b\.png can't be read"):
        list(SegmentationData({"name": "scenes"}, pictures=str(tmp_path)).predict_dataloader())
    config = {"name": "camvid", "root": "nowhere", "on_error": "skip"}
    with pytest.warns(UserWarning, match=r"skipped .*b\.png can't be read"):
        a, b, c = list(SegmentationData(config, pictures=str(tmp_path)).predict_dataloader())
    assert a[1:] == ((8, 9), str(tmp_path / "a.png")) and b[0] is None and c[0].shape == (3, 8, 9)


def test_each_process_predicts_its_share(tmp_path):
    for name in "abcde":
        save(tmp_path / f"{name}.png", np.zeros((8, 8, 3)))
    seen = []
    for rank in range(2):
        data = SegmentationData({"name": "scenes"}, pictures=str(tmp_path))
        data.trainer = types.SimpleNamespace(global_rank=rank, world_size=2)
        loader = data.predict_dataloader()
        assert len(loader.dataset.files) == 5  # of all processes: outputs are planned for all
        seen.append([Path(path).stem for _, _, path in loader])
    assert seen == [["a", "c", "e"], ["b", "d"]]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--dataset", "scenes", "--length", "3", "--size=32"], 7),
        (["--dataset", f"{__name__}.Squares", "--length=2"], 2),
        (["--dataset=folders", "--root", "ROOT", "--classes", "[road, sky]", "--split=val"], 2),
    ],
)
def test_class_weights_of_any_data_set(tmp_path, monkeypatch, capsys, arguments, count):
    folders(tmp_path)
    arguments = [str(tmp_path) if word == "ROOT" else word for word in arguments]
    monkeypatch.setattr(sys, "argv", ["balance", *arguments])
    balance.main()
    weights = capsys.readouterr().out.strip().removeprefix("class_weight: [").removesuffix("]").split(", ")
    assert len(weights) == count and all(float(weight) > 0 for weight in weights)


def test_class_weights_name_wrong_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["balance", "--dataset=scenes", "--root=here"])
    with pytest.raises(ValueError, match="'root'; its arguments are split, length, size, seed, objects"):
        balance.main()
    monkeypatch.setattr(sys, "argv", ["balance", "--dataset=scenes", "--length"])
    with pytest.raises(SystemExit):
        balance.main()
    assert "--length: arguments of the data set are pairs --NAME VALUE" in capsys.readouterr().err
