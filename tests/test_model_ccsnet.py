"""CCSNet, the losses that are outputs, and its configurations."""

from importlib.resources import files

import pytest

pytest.importorskip("lightning")
import torch
import yaml

from metricseg.cli import main
from metricseg.losses import build_loss
from metricseg.models import DeepLabV3Plus, build_model
from metricseg.training import SegmentationTask

SMALL = {"name": "ccsnet", "backbone": "mobilenetv3_small_050", "channels": 16, "decoder_channels": 24}
TERMS = {
    "name": "terms",
    "ce": {"loss": "cross_entropy"},
    "guidance": {"output": "guidance", "weight": 0.4, "loss": "cross_entropy"},
    "dice": {"output": "guidance", "weight": 0.2, "loss": "dice"},
    "push": {"output": "push", "weight": 1.0},
    "pull": {"output": "pull", "weight": 0.3},
}


def batch(count=2, classes=4):
    torch.manual_seed(0)
    return torch.randn(count, 3, 64, 96), torch.randint(0, classes, (count, 64, 96), dtype=torch.uint8)


@pytest.mark.parametrize("centers", ["adaptive", "static"])
def test_outputs(centers):
    torch.manual_seed(0)
    model = build_model({**SMALL, "num_classes": 4, "centers": centers}).eval()
    images, labels = batch()
    outputs = model.outputs(images, model.offers, labels)
    shapes = {"logits": (2, 4, 16, 24), "centers": (4, 24), "push": (), "pull": ()}
    if centers == "adaptive":
        shapes |= {"guidance": (2, 4, 16, 24), "centers": (2, 4, 24)}
    assert {name: tuple(value.shape) for name, value in outputs.items()} == shapes
    torch.testing.assert_close(outputs["logits"], model(images))
    assert model.predict(images).shape == (2, 4, 64, 96)


def test_weights_at_the_start_are_those_of_the_plain_network():
    options = {**SMALL, "num_classes": 4}
    torch.manual_seed(0)
    ours = build_model(options).state_dict()
    torch.manual_seed(0)
    plain = DeepLabV3Plus(**{k: v for k, v in options.items() if k != "name"}).state_dict()
    assert all(torch.equal(ours[k], v) for k, v in plain.items() if not k.startswith("classifier"))


def test_losses_of_the_task_are_those_of_the_layer():
    """`Terms` on the outputs, and the layer's own losses on the same features."""
    model, terms = build_model({**SMALL, "num_classes": 4}).eval(), build_loss(TERMS)
    images, labels = batch()
    values = terms(model.outputs(images, terms.needs, labels), labels)
    logits, losses = model.classifier(model.features(images)[0], labels)
    torch.testing.assert_close(values, {"ce": build_loss("cross_entropy")(logits, labels), **losses})


def test_loss_that_static_centers_can_not_give():
    with pytest.raises(ValueError, match="needs guidance; CCSNet offers logits, centers, push, pull"):
        SegmentationTask({**SMALL, "centers": "static"}, TERMS, 4)


def test_other_networks_ignore_the_labels():
    images, labels = batch()
    model = build_model({"name": "dmlseg", **{k: v for k, v in SMALL.items() if k != "name"}, "num_classes": 4}).eval()
    assert torch.equal(*(model.outputs(images, ("logits",), given)["logits"] for given in (labels, None)))


def test_fit_and_validate_through_the_command_line(tmp_path, monkeypatch):
    """The packaged configuration on generated scenes: every term is logged, and falls."""
    monkeypatch.chdir(tmp_path)
    quick = [
        "--config", "ccsnet_camvid", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=1",
        "--model.model.backbone=mobilenetv3_small_050", "--model.model.channels=16",
        "--model.model.decoder_channels=16",
        "--data.dataset={name: scenes, length: 8, size: 64}", "--data.crop=[64,64]", "--data.batch_size=4",
    ]  # fmt: skip
    logged = main(["fit", *quick]).trainer.logged_metrics
    parts = [logged[f"train/{name}"] for name in TERMS if name != "name"]
    torch.testing.assert_close(logged["train/loss"], sum(parts))
    assert all(part > 0 for part in parts)


@pytest.mark.parametrize("data", ["camvid", "cityscapes", "ade20k"])
def test_configurations_have_the_losses_of_the_system(data):
    config = yaml.safe_load(files("metricseg").joinpath(f"configs/ccsnet_{data}.yaml").read_text())["model"]
    assert config["model"]["name"] == "ccsnet" and config["loss"] == TERMS
