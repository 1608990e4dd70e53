"""The comparisons on CamVid: their rows build, a run resumes, and the report comes out of the kept curves."""

import json
import sys

import pytest

pytest.importorskip("timm")
pytest.importorskip("matplotlib")
import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.camvid import __main__, recipe, report
from benchmarks.camvid.rows import CENTERS, DECODERS, LOSSES, SEGSORT
from benchmarks.camvid.systems import System
from metricseg.data import CamVid
from metricseg.losses import build_loss
from metricseg.models import MODELS


@pytest.mark.parametrize("row", list(LOSSES.rows))
def test_rows_differ_in_their_losses_alone(row):
    terms = build_loss({"name": "terms", **LOSSES.rows[row].terms})
    assert terms.plans["auxiliary"] == ("auxiliary", 0.4, 1)
    assert ("embedding" in terms.needs) == (row not in ("ce", "focal"))
    outputs = {name: torch.randn(2, 11, 16, 16, requires_grad=True) for name in terms.needs}
    labels = torch.randint(0, 2, (2, 64, 64), dtype=torch.uint8)
    torch.stack(list(terms(outputs, labels).values())).sum().backward()
    assert all(value.grad.isfinite().all() and value.grad.any() for value in outputs.values())


@pytest.mark.parametrize("row", CENTERS.rows.values(), ids=list(CENTERS.rows))
def test_rows_have_the_losses_that_their_centers_can_give(row):
    """Cross-entropy of the logits always, of the guidance where there is one."""
    terms = build_loss({"name": "terms", **row.terms})
    model = MODELS.build({**row.model, "num_classes": 11, "backbone": "mobilenetv3_small_050", "channels": 16})
    assert set(terms.needs) <= set(model.offers) and terms.plans["ce"] == ("logits", 1.0, 1)
    assert ("guidance" in terms.plans) == ("guidance" in model.offers)
    assert {name: terms.plans[name] for name in terms.plans if name in ("push", "pull")} in (
        {}, {"push": ("push", 1.0, 1), "pull": ("pull", 0.3, 1)},
    )  # fmt: skip


def test_decoders_differ_in_upsampling_and_context_alone():
    start = {}
    for name, row in DECODERS.rows.items():
        torch.manual_seed(0)
        model = MODELS.build({**row.model, "num_classes": 11, "backbone": "mobilenetv3_small_050"})
        assert row.terms == DECODERS.rows["bilinear"].terms
        start[name] = {key for key in model.state_dict() if not key.startswith("context")}
    assert start["bilinear"] < start["flow"] == start["srm"] == start["srm_crm"]
    assert all("align" in key for key in start["flow"] - start["bilinear"])


def test_segsort_rows_are_trained_with_what_their_losses_take(tmp_path):
    """Regions, int32 with -1 around the picture, for the loss without labels; a new bank before validation."""
    for split, folder in ((s, f) for s in ("train", "val") for f in (s, f"{s}annot")):
        (tmp_path / folder).mkdir()
        for k in range(8 if split == "train" else 1):
            pixels = np.full((64, 96) if "annot" in folder else (64, 96, 3), k, np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{k}.png")
    (tmp_path / "maps").mkdir()
    for k in range(8):
        np.save(tmp_path / f"maps/{k}.npy", np.arange(64 * 96).reshape(64, 96) // 96)
    for row in SEGSORT.rows.values():
        terms = build_loss({"name": "terms", **row.terms})
        supervision = {getattr(loss, "supervision", "labels") for loss in terms.losses.values()}
        assert supervision == {"segments" if row.regions else "labels"}
        regions = {"folder": tmp_path / "maps"} if row.regions else {}
        images, labels = next(iter(recipe.train_loader(tmp_path, 0, regions=regions)))
        inside = labels != (-1 if row.regions else 255)
        assert labels.shape == (8, 320, 320) and images.shape == (8, 3, 320, 320) and not inside.all()
        assert len(labels[inside].unique()) == (64 if row.regions else 8)
    small = {"backbone": "mobilenetv3_small_050", "channels": 16, "decoder_channels": 16, "num_classes": 11}
    model = MODELS.build({**SEGSORT.rows["supervised"].model, **small})
    found = recipe.validate(System(model, [], [], None, model.predict), tmp_path)
    assert [len(iou) for iou in found] == [11, 11] and model.bank.images.unique().tolist() == list(range(8))


def system() -> System:
    model = nn.Conv2d(3, 11, 1)
    return System(model, [model.weight], [model.bias], lambda x, y: (model(x)[:, 0] * y).mean(), model)


def test_run_is_kept_and_resumed(tmp_path, monkeypatch):
    """Two epochs at once and two with a break between: the same weights; and the report of both."""
    monkeypatch.setattr(recipe, "validate", lambda *_: ([0.5] * 11, [0.25] * 11))
    pictures = [(torch.randn(3, 4, 4), torch.rand(4, 4)) for _ in range(4)]

    class Order(torch.utils.data.SequentialSampler):
        def set_epoch(self, epoch):
            pass

    loader = torch.utils.data.DataLoader(pictures, 2, sampler=Order(pictures))

    def run(name):
        paths = tmp_path / f"{name}.pt", tmp_path / f"{name}.csv"
        recipe.train(system, loader, tmp_path, epochs=2, seed=0, eval_every=2, checkpoint=paths[0], curve=paths[1])
        return torch.load(paths[0], weights_only=True)

    whole, epoch, calls = run("ce-0"), recipe.train_epoch, []

    def killed(*args):
        calls.append(args)
        return epoch(*args) if len(calls) < 2 else pytest.fail("killed")

    with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception, match="killed"):
        patch.setattr(recipe, "train_epoch", killed)
        run("focal-0")
    with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception, match="killed"):
        patch.setattr(recipe, "validate", lambda *_: pytest.fail("killed"))
        run("focal-0")
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "train_epoch", lambda *_: pytest.fail("both epochs are kept"))
        resumed = run("focal-0")
    assert torch.equal(whole["model"]["weight"], resumed["model"]["weight"])
    assert [row["val_miou"] for row in resumed["rows"]] == ["", 0.5]

    (tmp_path / "camvid_losses.json").write_text(
        json.dumps({"steps": {n: {"seconds": 1, "peak_mb": 2} for n in ("ce", "focal")}})
    )
    report.report(LOSSES, tmp_path, tmp_path)
    runs = json.loads((tmp_path / "camvid_losses.json").read_text())["runs"]
    one = {"epochs": 2, "seeds": 1, "val_miou": 50.0, "spread": None}
    assert runs["ce"] == {**one, "val_miou_boundary": 25.0, "spread_boundary": None} and set(runs) == {"ce", "focal"}
    assert (tmp_path / "camvid_losses.png").exists()
    table = (tmp_path / "camvid_losses.csv").read_text().splitlines()
    assert len(table) == 5 and table[0].startswith("row,seed,epoch,") and table[0].endswith(CamVid.classes[-1])


def test_report_gives_shares(tmp_path):
    for row, miou in (("softmax", 0.5), ("supervised", 0.4), ("unsupervised", 0.3)):
        recipe.write_rows(tmp_path / f"{row}-0.csv", [{"epoch": 1, "train_loss": 1.0, "val_miou": miou}])
    report.report(SEGSORT, tmp_path, tmp_path)
    runs = json.loads((tmp_path / "camvid_segsort.json").read_text())["runs"]
    assert runs["unsupervised"]["share_of_supervised"] == 0.75 and runs["supervised"]["share_of_softmax"] == 0.8


def test_command_line_reports_kept_runs(tmp_path, monkeypatch, capsys):
    """The comparison of two networks, of which one run is kept."""
    row = {"epoch": 1, "train_loss": 0.5, "val_miou": 0.25, "train_seconds": 3.0, "train_cpu_seconds": 5.0}
    recipe.write_rows(tmp_path / "metricseg-0.csv", [row])
    folders = ["--work", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks.camvid", "networks", "report", *folders])
    __main__.main()
    assert "| metricseg, fused focal loss, bf16 | 25.0 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "camvid.json").read_text())["runs"]["metricseg"]["val_miou"] == 25.0
    assert (tmp_path / "camvid.csv").exists() and (tmp_path / "camvid.png").exists()
