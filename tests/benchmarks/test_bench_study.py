"""The study on frozen features: its rows train, its cache is what the network computes, its intervals are right."""

import json

import pytest

pytest.importorskip("timm")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
import numpy as np
import torch
from PIL import Image

from benchmarks.study import features, report, training
from benchmarks.study.features import Batch, Cached, Features, same_settings, settings
from benchmarks.study.rows import ROWS
from metricseg.losses import build_loss
from metricseg.models import SegSort, build_model
from metricseg.models.backbone import STAGES, Backbone

SMALL = "mobilenetv3_small_050"


@pytest.fixture
def camvid(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder, shape in ((split, (64, 96, 3)), (f"{split}annot", (64, 96))):
            (tmp_path / folder).mkdir()
            for k in range(3):
                pixels = generator.integers(0, 11, shape).astype(np.uint8).repeat(1)
                Image.fromarray(pixels.reshape(shape)).save(tmp_path / folder / f"{k}.png")
    return tmp_path


class Maps:
    """Two pictures' worth of features in the place of a cache."""

    def __init__(self, channels):
        generator = torch.Generator().manual_seed(0)
        stages = zip(channels, STAGES, strict=True)
        self.stages = tuple(torch.randn(2, c, 64 // s, 64 // s, generator=generator).bfloat16() for c, s in stages)
        self.labels = torch.arange(2 * 64 * 64).view(2, 64, 64).div(1024).byte()

    def __len__(self):
        return 2

    def batch(self, indices):
        return Batch(tuple(x[[i % 2 for i in indices]] for x in self.stages), self.labels[[i % 2 for i in indices]])

    def batches(self, size):
        yield self.batch([0, 1])


@pytest.mark.parametrize(
    "name", ["ce", "margin", "infonce_balanced", "static_losses", "adaptive_losses", "segsort", "bilinear", "srm_crm"]
)
def test_rows_train_and_are_scored(name, monkeypatch):
    monkeypatch.setattr(training, "BACKBONE", SMALL)
    monkeypatch.setattr(training, "BATCH", 2)
    row = ROWS[name]
    maps = Maps(Backbone(SMALL, 32).stage_channels)
    first, second = (training.train(row, 0, 2, maps, name) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.manual_seed(training.seeded(0))
    start = build_model({**row.model, "backbone": SMALL, "num_classes": 11})
    start.backbone = Cached()
    needs = build_loss({"name": "terms", **row.terms}).needs
    for part in (*needs, "decoder" if "segsort" not in name and row.model["name"] != "scrseg" else "steps"):
        if isinstance(getattr(start, part, None), torch.nn.Module):
            pairs = zip(getattr(start, part).parameters(), getattr(first, part).parameters(), strict=True)
            assert any(not torch.equal(a, b) for a, b in pairs), part
    if isinstance(first, SegSort):
        first.grid = (2, 2)
    found = training.score(first, maps, maps)
    assert len(found["iou"]) == len(found["boundary"]) == 11


def test_every_row_has_a_baseline_and_losses_that_its_network_offers():
    for name, row in ROWS.items():
        assert row.baseline in ("", *ROWS) and bool(row.baseline) == (name not in ("ce", "bilinear"))
        model = build_model({**row.model, "backbone": SMALL, "num_classes": 11})
        assert set(build_loss({"name": "terms", **row.terms}).needs) <= set(model.offers)


def test_features_are_the_networks_and_computed_once(camvid, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BACKBONE", SMALL)
    monkeypatch.setattr(features, "SHARD", 2)
    network = Backbone(SMALL, 32).eval()
    monkeypatch.setattr(features, "Backbone", lambda *_, **__: network)
    arguments = camvid, camvid / "weights", 2
    views, val = (Features(tmp_path, split, *arguments) for split in ("views", "val"))
    assert len(views) == 6 and len(val) == 3 and views.batch([0, 5]).labels.shape == (2, 256, 256)
    assert not torch.equal(views.batch([0]).labels, views.batch([3]).labels)  # two views of one picture
    (tmp_path / "views-0001.safetensors").unlink()
    stale = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    again = Features(tmp_path, "views", *arguments)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stale.items())
    for a, b in zip(again.batch([1, 2, 4]).stages, views.batch([1, 2, 4]).stages, strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(features, "Backbone", lambda *_, **__: pytest.fail("all shards are kept"))
    (batch,) = Features(tmp_path, "val", *arguments).batches(8)
    image = features.Augmented(features.CamVid(camvid, "val"), features.eval_transform(mean=(0.5,) * 3, std=(0.5,) * 3))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = network.stages(image[1][0].as_subclass(torch.Tensor)[None])
    for found, stage in zip(batch.stages, expected, strict=True):
        assert (found[1:2].float() - stage.float()).abs().max() <= 0.02 * stage.float().abs().max()


def test_a_cache_of_other_settings_is_refused(camvid):
    (camvid / "weights").write_bytes(b"1")
    path = camvid / "work/settings.json"
    for _ in range(2):
        same_settings(path, settings(camvid, camvid / "weights", 2))
    with pytest.raises(ValueError, match=r"work is of a study with views 2 \(now 3\); give another folder as --work"):
        same_settings(path, settings(camvid, camvid / "weights", 3))


def test_intervals_are_of_differences_within_a_seed(tmp_path, capsys):
    """Seeds differ by 10 points, the rows by 1, 2 and 3: mean 2, deviation 1, t of two degrees of freedom 4.303."""
    for row, values in (("ce", (0.1, 0.2, 0.3)), ("focal", (0.11, 0.22, 0.33)), ("srm", (0.5,))):
        for seed, value in enumerate(values):
            scores = {"iou": [value] * 11, "boundary": [value / 2] * 11}
            (tmp_path / f"{row}-{seed}.json").write_text(json.dumps(scores))
    report.report(tmp_path, tmp_path / "out")
    rows = json.loads((tmp_path / "out/study.json").read_text())["rows"]
    assert list(rows) == ["ce", "focal", "srm"] and "half" not in rows["ce"]["miou"] and rows["srm"]["seeds"] == 1
    assert rows["focal"]["miou"]["difference"] == pytest.approx(2)
    assert rows["focal"]["miou"]["half"] == pytest.approx(4.303 / 3**0.5, abs=2e-3)
    assert rows["focal"]["boundary"]["difference"] == pytest.approx(1)
    assert "| focal | 3 | 22.0 | cross-entropy | +2.0 ± 2.5 | +1.0 ± 1.2 | +2.0 ± 2.5 |" in capsys.readouterr().out
    assert (tmp_path / "out/study.png").exists()
