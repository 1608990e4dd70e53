"""CCSNet, the losses that are outputs, and its configurations."""

from importlib.resources import files

import pytest

pytest.importorskip("lightning")
import torch
import yaml
from PIL import Image

from metricseg.cli import main
from metricseg.data import CamVid
from metricseg.losses import build_loss
from metricseg.models import DeepLabV3Plus, build_model
from metricseg.training.task import SegmentationTask
from metricseg.visualization.centers import center_similarities, draw_maps, draw_matrices

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
    """The packaged configuration on generated scenes: every term is logged, and the centers are drawn."""
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
    drawn = tmp_path / "runs/ccsnet_camvid/centers"
    assert sorted(path.name for path in drawn.iterdir()) == ["epoch_001_maps.png", "epoch_001_matrix.png"]
    matrix, maps = (Image.open(path) for path in sorted(drawn.iterdir(), reverse=True))
    assert matrix.width > 700 and maps.height > 300  # two matrices beside each other, four pictures below
    kept = torch.load(drawn.parent / "checkpoints/last.ckpt", weights_only=False)["callbacks"]
    (before,) = next(value for name, value in kept.items() if "CenterPictures" in name).items()
    assert before[0] == "before training, 2 pictures" and before[1].shape == (7, 7)


def shown(labels, count=1):
    """Pictures with labels [16, 16], and centers of three classes: two of one direction, one across it."""
    centers = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    return [
        (torch.zeros(3, 16, 16), labels, torch.zeros(16, 16, dtype=torch.int64), torch.randn(3, 4, 4), centers)
    ] * count


def test_center_similarities_are_means_over_pictures_with_both_classes():
    halves = torch.arange(2, dtype=torch.uint8).repeat_interleave(8).expand(16, 16)  # classes 0 and 1
    (first,), (second,) = shown(halves), shown(2 * halves)
    second = (*second[:4], torch.tensor([[2.0, 0.0], [9.0, 9.0], [1.0, 1.0]]))
    matrix = center_similarities([first, second])
    expected = torch.tensor([[1.0, 1.0, 0.5**0.5], [1.0, 1.0, torch.nan], [0.5**0.5, torch.nan, 1.0]])
    torch.testing.assert_close(matrix, expected, equal_nan=True)


def test_pictures_of_degenerate_centers(tmp_path):
    """Nothing labelled, one class, more classes than can be named: still pictures."""
    one, none = torch.zeros(16, 16, dtype=torch.uint8), torch.full((16, 16), 255, dtype=torch.uint8)
    for labels in (one, none):
        draw_maps(shown(labels, 2), CamVid.palette, CamVid.classes[:3], tmp_path / "maps.png")
        draw_matrices({"now": center_similarities(shown(labels))}, CamVid.classes[:3], tmp_path / "matrix.png")
    draw_matrices({"a": torch.zeros(40, 40), "b": torch.eye(40)}, [str(k) for k in range(40)], tmp_path / "large.png")
    assert Image.open(tmp_path / "large.png").width > Image.open(tmp_path / "matrix.png").width


@pytest.mark.parametrize("data", ["camvid", "cityscapes", "ade20k"])
def test_configurations_have_the_losses_of_the_system(data):
    config = yaml.safe_load(files("metricseg").joinpath(f"configs/ccsnet_{data}.yaml").read_text())["model"]
    assert config["model"]["name"] == "ccsnet" and config["loss"] == TERMS
