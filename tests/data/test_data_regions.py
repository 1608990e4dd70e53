"""Oversegmentations in the place of labels: cached, of one's own, augmented like labels, and trained on."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
import torch
from PIL import Image

from metricseg.cli import main
from metricseg.data import Augmented, BadSample, Scenes, build_dataset, regions, train_transform
from metricseg.data.module import SegmentationData
from metricseg.data.regions import NO_REGION, Oversegmented, Regions


def blocks(calls):
    """In place of scikit-image's functions: regions by red value in steps of 16, numbered with gaps."""

    def segment(pixels, **options):
        calls.append(options)
        return pixels[..., 0].astype(np.int64) // 16 * 3

    return lambda method: segment


@pytest.fixture
def calls(monkeypatch):
    """The options of each picture that was segmented."""
    found = []
    monkeypatch.setattr(regions, "segmenter", blocks(found))
    return found


def folders(root: Path, count: int = 3, size: tuple[int, int] = (24, 40)) -> dict:
    """The configuration of a data set of `count` pictures."""
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for k in range(count):
        pixels = np.repeat(generator.integers(1, 256, (*size, 1), dtype=np.uint8), 3, 2)
        Image.fromarray(pixels).save(root / f"images/train/{k}.png")
        Image.fromarray(np.zeros(size, np.uint8)).save(root / f"labels/train/{k}.png")
    return {"name": "folders", "root": str(root), "classes": ["road", "sky"]}


def test_maps_are_computed_once_and_an_interrupted_pass_goes_on(tmp_path, calls, monkeypatch):
    config = folders(tmp_path)
    data = Oversegmented(build_dataset(config, "train"), Regions("felzenszwalb", cache=tmp_path / "cache", scale=50))
    write, written = regions.write_whole, []

    def stopping(path, content, what):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content, what)

    monkeypatch.setattr(regions, "write_whole", stopping)
    with pytest.raises(KeyboardInterrupt):
        data.prepare()
    monkeypatch.setattr(regions, "write_whole", write)
    assert data.prepare() == 1 and data.prepare() == 0
    assert calls == [{"scale": 50.0, "sigma": 0.8, "min_size": 100}] * 4
    image, found = data[1]
    values = image[0].numpy() // 16
    assert found.dtype == torch.int32 and np.array_equal(
        np.unique(values, return_inverse=True)[1].reshape(24, 40), found
    )
    assert len(calls) == 4 and {p.parent.name for p in written} == {"felzenszwalb-scale50-sigma0.8-min_size100"}

    picture = tmp_path / "images/train/1.png"  # another picture in the same file
    Image.fromarray(np.full((24, 40, 3), 40, np.uint8)).save(picture)
    assert data.missing() == [1] and not data[1][1].any()
    other = Oversegmented(data.data, Regions("felzenszwalb", cache=tmp_path / "cache", scale=60))
    assert other.missing() == [0, 1, 2]


def test_pictures_without_files_are_known_by_their_pixels(tmp_path, calls):
    data = Oversegmented(Scenes("train", 3, 32), Regions("slic", cache=tmp_path))
    assert data.prepare() == 3 and Oversegmented(Scenes("train", 4, 32), data.regions).missing() == [3]
    assert calls[0] == {"n_segments": 150, "compactness": 10.0, "sigma": 0.0, "start_label": 0}
    with pytest.raises(ValueError, match="this data set keeps no `images`"):
        Oversegmented(Scenes("train", 3, 32), Regions(folder=tmp_path))


def test_regions_are_augmented_like_labels(tmp_path, calls):
    """Every region of a picture in flat columns has one color after scale, crop and flip; padding is no region."""
    config = folders(tmp_path, 1)
    columns = np.repeat(np.arange(0, 240, 48, dtype=np.uint8), 8)  # 5 columns of 8 pixels
    Image.fromarray(np.repeat(np.tile(columns, (24, 1))[..., None], 3, 2)).save(tmp_path / "images/train/0.png")
    data = Oversegmented(build_dataset(config, "train"), Regions("slic", cache=tmp_path / "cache"))
    transform = train_transform((40, 40), scale=(1.0, 1.0), mean=(0, 0, 0), std=(1, 1, 1), ignored=NO_REGION)
    flipped = set()
    for position in range(8):
        image, found = Augmented(data, transform)[position]
        red = (image[0] * 255).round().int()
        inside = found != NO_REGION
        assert found.dtype == torch.int32 and int(inside.sum()) == 24 * 40 and not red[~inside].any()
        assert torch.equal(found[inside] * 48, red[inside])
        flipped.add(bool(found[inside][0]))
    assert flipped == {False, True}


def test_files_of_your_own(tmp_path):
    data = build_dataset(folders(tmp_path), "train")
    own = tmp_path / "own"
    own.mkdir()
    values = np.arange(24 * 40).reshape(24, 40)
    Image.fromarray(values.astype(np.uint16)).save(own / "0.png")
    np.save(own / "1.npy", np.where(values < 40, -7, values * 1000))
    with pytest.raises(FileNotFoundError, match=r"own/2\.png is missing\. region files are DIR/NAME\.png"):
        Oversegmented(data, Regions(folder=own))
    Image.fromarray(np.zeros((24, 39), np.uint8)).save(own / "2.png")
    found = Oversegmented(data, Regions(folder=own))
    assert np.array_equal(found[0][1], values) and found.prepare() == 0
    assert np.array_equal(found[1][1], np.where(values < 40, NO_REGION, values - 40))  # numbers with gaps
    with pytest.raises(BadSample, match=r"own/2\.png are 39 x 24 but their picture .*2\.png is 40 x 24"):
        found[2]
    Image.fromarray(np.zeros((24, 40, 3), np.uint8)).save(own / "2.png")
    with pytest.raises(BadSample, match=r"the regions .*own/2\.png can't be read: it has RGB pixels; region files are"):
        found[2]
    (own / "2.png").write_bytes((own / "2.png").read_bytes()[:40])
    with pytest.raises(BadSample, match=r"own/2\.png can't be read"):
        found[2]
    (own / "2.png").unlink()
    np.save(own / "2.npy", np.zeros((24, 40)))
    with pytest.raises(BadSample, match=r"own/2\.npy can't be read: it holds float64 \[24, 40\], not integers"):
        found[2]


def test_a_skipped_picture_has_no_region(tmp_path, calls):
    config = folders(tmp_path) | {"on_error": "skip"}
    (tmp_path / "images/train/1.png").write_bytes(b"no picture")
    data = Oversegmented(build_dataset(config, "train"), Regions("slic", cache=tmp_path / "cache"))
    transform = train_transform((16, 16), ignored=NO_REGION)
    with pytest.warns(UserWarning, match=r"skipped sample 1"):
        data.prepare()
        assert (Augmented(data, transform)[1][1] == NO_REGION).all()
    (own := tmp_path / "own").mkdir()
    for k in range(3):
        np.save(own / f"{k}.npy", np.zeros((3, 3), np.int32))
    with pytest.warns(UserWarning, match=r"skipped .*own/0\.npy are 3 x 3"):
        found = Augmented(Oversegmented(data.data, Regions(folder=own)), transform)[0][1]
    assert found.dtype == torch.int32 and (found == NO_REGION).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "method None and folder None; they take one of them"),
        ({"method": "slic", "folder": "."}, "they take one of them"),
        ({"method": "watershed"}, "method of regions is 'watershed'; it takes one of felzenszwalb, slic"),
        ({"method": "slic", "scale": 1}, "scale is no option of regions; slic takes n_segments, compactness, sigma"),
        ({"folder": ".", "scale": 1}, "scale is no option of regions; a folder of your own files takes none"),
        ({"method": "slic", "n_segments": 0}, "n_segments of regions is 0; it takes int >= 1"),
        ({"method": "slic", "sigma": "a"}, "sigma of regions is 'a'; it takes float >= 0"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        SegmentationData("scenes", regions=options)


def test_without_scikit_image(tmp_path, monkeypatch):
    for name in ("skimage", "skimage.segmentation"):
        monkeypatch.setitem(sys.modules, name, None)
    data = Oversegmented(Scenes("train", 3, 32), Regions("felzenszwalb", cache=tmp_path))
    with pytest.raises(ImportError, match=r'regions by felzenszwalb need scikit-image: pip install "metricseg\[unsup'):
        data.prepare()


def test_scikit_image(tmp_path):
    """Its two methods on a scene: several regions, and the map of the cache."""
    pytest.importorskip("skimage")
    scenes = Scenes("train", 1, 64)
    for source in (
        Regions("felzenszwalb", cache=tmp_path, min_size=20),
        Regions("slic", cache=tmp_path, n_segments=20),
    ):
        data = Oversegmented(scenes, source)
        found = data[0][1]
        assert found.unique().tolist() == list(range(int(found.max()) + 1)) and 5 < found.max() < 300
        assert np.array_equal(source.compute(scenes[0][0]), data[0][1]) and not data.missing()


FIT = [
    "fit", "--config=segsort_scenes", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
    "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--model.model.backbone=mobilenetv3_small_050", "--model.model.channels=16", "--model.model.decoder_channels=16",
    "--model.model.pictures=3", "--data.dataset.length=8", "--data.dataset.size=32", "--data.crop=[32,32]",
    "--data.batch_size=4", "--data.eval_batch_size=2", "--embedding.pictures=0",
]  # fmt: skip


def test_fit_on_regions(tmp_path, calls, monkeypatch):
    """The maps are computed before the first step; validation by retrieval; labels and regions are not mixed up."""
    monkeypatch.chdir(tmp_path)
    term = "{output: embedding, loss: {name: segsort, supervision: segments}}"
    given, without = "--data.regions={method: slic, cache: maps}", f"--model.loss.segsort={term}"
    for options, words in (
        ([given], "give regions and the loss takes labels"),
        ([without], "give labels and the loss"),
    ):
        with pytest.raises(ValueError, match=words):
            main([*FIT, *options])
        assert not calls
    cli = main([*FIT, given, without])
    logged = cli.trainer.logged_metrics
    assert len(calls) == 8 and len(list((tmp_path / "maps").rglob("*.png"))) == 8
    assert logged["train/segsort"] > 0 and 0 < logged["val/miou"] < 1
