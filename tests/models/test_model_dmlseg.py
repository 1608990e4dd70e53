"""DMLSeg, the losses on its outputs, and the pictures of its embedding."""

import os
from importlib.resources import files

import numpy as np
import pytest

pytest.importorskip("lightning")
import torch
import yaml
from PIL import Image

from metricseg.cli import main
from metricseg.data import CamVid
from metricseg.data.balance import balanced_weights
from metricseg.losses import build_loss
from metricseg.models import build_model
from metricseg.training.task import SegmentationTask
from metricseg.visualization.embedding import draw, principal_components

SMALL = {
    "name": "dmlseg", "backbone": "mobilenetv3_small_050", "channels": 16, "decoder_channels": 24,
    "embedding_channels": 8,
}  # fmt: skip
TERMS = {
    "name": "terms",
    "focal": {"loss": {"name": "focal", "gamma": 1.5}},
    "contrast": {"output": "embedding", "weight": 0.1, "loss": {"name": "margin_contrast", "min_pixels": 1}},
    "auxiliary": {"output": "auxiliary", "weight": 0.4, "loss": "cross_entropy"},
}


def batch(count=2, classes=4):
    torch.manual_seed(0)
    return torch.randn(count, 3, 64, 96), torch.randint(0, classes, (count, 64, 96), dtype=torch.uint8)


def test_outputs():
    model = build_model({**SMALL, "num_classes": 4, "output_stride": 8}).eval()
    images, _ = batch()
    outputs = model.outputs(images, model.offers)
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert shapes == {"logits": (2, 4, 16, 24), "embedding": (2, 8, 16, 24), "auxiliary": (2, 4, 8, 12)}
    torch.testing.assert_close(outputs["logits"], model(images))


def test_prediction_computes_no_other_head(monkeypatch):
    model = build_model({**SMALL, "num_classes": 4})
    for head in (model.embedding, model.auxiliary):
        monkeypatch.setattr(head, "forward", lambda *_: pytest.fail("a head that nobody asked for"))
    assert model.predict(batch()[0]).shape == (2, 4, 64, 96)


def test_terms_are_the_weighted_losses_of_their_outputs():
    images, labels = batch()
    outputs = build_model({**SMALL, "num_classes": 4}).outputs(images, ("logits", "embedding", "auxiliary"))
    terms = build_loss(TERMS)
    assert terms.needs == ("auxiliary", "embedding", "logits")
    torch.manual_seed(1)
    values = terms(outputs, labels)
    torch.manual_seed(1)
    expected = {
        "focal": build_loss(TERMS["focal"]["loss"])(outputs["logits"], labels),
        "contrast": 0.1 * terms.losses["contrast"](outputs["embedding"], labels, outputs["logits"]),
        "auxiliary": 0.4 * build_loss("cross_entropy")(outputs["auxiliary"], labels),
    }
    assert list(values) == list(expected)
    for name, value in values.items():
        assert torch.equal(value, expected[name]) and value > 0, name
    assert build_loss({"name": "terms", "aux": TERMS["auxiliary"]}).needs == ("auxiliary",)


def test_stride_takes_every_cell_of_a_coarser_grid():
    images, labels = batch()
    outputs = build_model({**SMALL, "num_classes": 4}).outputs(images, ("logits", "embedding"))
    loss = {"name": "pixel_contrast", "sampling": "all"}
    (value,) = build_loss({"name": "terms", "c": {"output": "embedding", "stride": 2, "loss": loss}})(
        outputs, labels
    ).values()
    expected = build_loss(loss)(outputs["embedding"][..., ::2, ::2].contiguous(), labels[:, ::8, ::8])
    torch.testing.assert_close(value, expected)


def test_output_that_is_a_loss_itself():
    terms = build_loss({"name": "terms", "push": {"output": "push", "weight": 0.5}})
    assert terms.needs == ("push",) and not list(terms.losses)
    assert terms({"push": torch.tensor(3.0)}, torch.zeros(1, 2, 2)) == {"push": 1.5}
    with pytest.raises(ValueError, match="term 'push' has no loss, and its output 'push' is no 0-d value"):
        terms({"push": torch.zeros(1, 4, 2, 2)}, torch.zeros(1, 2, 2))


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({}, "at least one"),
        ({"focal": "focal"}, "term 'focal' is 'focal'"),
        ({"focal": {"weight": 1}}, "term 'focal'.*takes a mapping with loss"),
        ({"focal": {"loss": "focal", "on": "logits"}}, "term 'focal'.*output, weight, stride"),
        ({"push": {"output": "push", "stride": 2}}, "term 'push'.*the output that is a loss, and weight"),
        ({"push": {"output": "push", "weight": float("inf")}}, "term 'push' has weight inf"),
        ({"focal": {"loss": "focal", "weight": float("nan")}}, "term 'focal' has weight nan"),
        ({"focal": {"loss": "focal", "stride": 0}}, "stride 0"),
        ({"focal": {"loss": "vocal"}}, "no loss is called 'vocal'"),
    ],
)
def test_terms_that_can_not_be_built(terms, words):
    with pytest.raises(ValueError, match=words):
        build_loss({"name": "terms", **terms})


def test_loss_on_an_output_that_the_network_has_not():
    model = {"name": "deeplabv3plus", "backbone": "mobilenetv3_small_050", "channels": 16}
    with pytest.raises(ValueError, match="needs auxiliary, embedding; DeepLabV3Plus offers logits"):
        SegmentationTask(model, TERMS, 4)


def test_fit_and_validate_through_the_command_line(tmp_path, monkeypatch):
    """The packaged configuration on generated scenes: every term is logged, and the embedding is drawn."""
    monkeypatch.chdir(tmp_path)
    quick = [
        "--config", "dmlseg_camvid", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=1",
        "--model.model.backbone=mobilenetv3_small_050", "--model.model.channels=16",
        "--model.model.decoder_channels=16", "--model.loss.focal={loss: focal}",
        "--data.dataset={name: scenes, length: 8, size: 64}", "--data.crop=[64,64]", "--data.batch_size=4",
    ]  # fmt: skip
    logged = main(["fit", *quick]).trainer.logged_metrics
    parts = [logged[f"train/{name}"] for name in ("focal", "contrast", "auxiliary")]
    torch.testing.assert_close(logged["train/loss"], sum(parts))
    run = tmp_path / "runs/dmlseg_camvid"
    main(["validate", *quick, "--embedding.pictures=2", f"--ckpt_path={run}/checkpoints/last.ckpt"])
    for name in ("epoch_001_map", "epoch_001_scatter", "validate_map", "validate_scatter"):
        assert min(Image.open(run / f"embedding/{name}.png").size) > 300
    assert (
        Image.open(run / "embedding/epoch_001_map.png").height > Image.open(run / "embedding/validate_map.png").height
    )


def test_infonce_by_option():
    option = "--model.loss.contrast={output: embedding, weight: 0.2, loss: {name: pixel_contrast, temperature: 0.07}}"
    loss = main(["--config", "dmlseg_camvid", option, "--trainer.logger=false"], run=False).model.loss
    assert type(loss.losses["contrast"]).__name__ == "PixelContrastLoss" and loss.losses["contrast"].temperature == 0.07
    assert loss.plans["contrast"] == ("embedding", 0.2, 1) and set(loss.losses) == {"focal", "contrast", "auxiliary"}


def test_principal_components():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8)).Q
    rows = 3 + torch.randn(4000, 8) * torch.tensor([5.0, 3, 2, 0.1, 0.1, 0.1, 0.1, 0.1]) @ basis.T
    mean, directions = principal_components(rows)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(directions.T @ directions, torch.eye(3), atol=1e-5, rtol=0)
    assert (directions.T @ basis[:, :3]).abs().diag().min() > 0.99


def test_pictures_of_degenerate_embeddings(tmp_path):
    """One class, nothing labelled, all pixels equal: still pictures."""
    for labels, embedding in (
        (torch.zeros(16, 16, dtype=torch.uint8), torch.randn(5, 4, 4)),
        (torch.full((16, 16), 255, dtype=torch.uint8), torch.randn(5, 4, 4)),
        (torch.zeros(16, 16, dtype=torch.uint8), torch.ones(5, 4, 4)),
    ):
        shown = [(torch.zeros(3, 16, 16), labels, torch.zeros(16, 16, dtype=torch.int64), embedding)]
        draw(shown, CamVid.palette, CamVid.classes, tmp_path / "map.png", tmp_path / "scatter.png")


def test_balanced_weights():
    counts = np.array([900.0, 100.0, 0.0])
    weights = balanced_weights(counts)
    np.testing.assert_allclose(weights[0] / weights[1], np.log(1.1 + 0.1) / np.log(1.1 + 0.9))
    np.testing.assert_allclose((weights * counts).sum() / counts.sum(), 1)


@pytest.mark.skipif("METRICSEG_CAMVID" not in os.environ, reason="METRICSEG_CAMVID is not the folder of CamVid")
def test_class_weights_of_camvid():
    """The list in the configuration is what the data gives."""
    config = yaml.safe_load(files("metricseg").joinpath("configs/dmlseg_camvid.yaml").read_text())
    data = CamVid(os.environ["METRICSEG_CAMVID"], "train")
    counts = sum(torch.bincount(data[k][1].flatten(), minlength=256)[:11] for k in range(len(data)))
    found = config["model"]["loss"]["focal"]["loss"]["class_weight"]
    np.testing.assert_allclose(found, balanced_weights(counts.double().numpy()), atol=6e-4)
