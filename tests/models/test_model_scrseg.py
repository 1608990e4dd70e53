"""SCRSeg: its outputs, its gradients, what it says of a backbone that lacks a stride, and its configurations."""

from importlib.resources import files

import pytest

pytest.importorskip("lightning")
import torch
import yaml
from PIL import Image

from metricseg.cli import main
from metricseg.losses import build_loss
from metricseg.models import build_model
from metricseg.visualization.offsets import KINDS, changes, direction_colors, paint

SMALL = {"name": "scrseg", "backbone": "mobilenetv3_small_050", "channels": 16, "context": 32, "hidden": 8}
TERMS = {
    "name": "terms",
    "ce": {"loss": "cross_entropy"},
    "auxiliary": {"output": "auxiliary", "weight": 0.4, "loss": "cross_entropy"},
}


@pytest.mark.parametrize(
    "options",
    [{"form": "affinity"}, {"form": "gate"}, {"context": 0, "upsampling": "flow"}, {"upsampling": "bilinear"}],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_outputs_and_gradients(options):
    torch.manual_seed(0)
    model = build_model({**SMALL, "num_classes": 4, **options})
    images, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 4, (2, 64, 96))
    outputs = model.outputs(images, model.offers)
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "logits": (2, 4, 16, 24),
        "auxiliary": (2, 4, 4, 6),
        "bilinear": (2, 4, 16, 24),
        "offsets_16": (2, 2, 4, 6),
        "offsets_8": (2, 2, 8, 12),
        "offsets_4": (2, 2, 16, 24),
    }
    assert list(model.outputs(images, ("auxiliary",))) == ["auxiliary"]
    # what starts at zero hides what comes before it in the first step
    for name, parameter in model.named_parameters():
        if name.endswith(("predictor.weight", "space_scale")):
            torch.nn.init.normal_(parameter, std=0.1)
    sum(build_loss(TERMS)(model.outputs(images, model.offers), labels).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.startswith("backbone"), name
    assert model.eval().predict(images).shape == (2, 4, 64, 96)


def test_bilinear_logits_are_those_with_offsets_of_zero():
    torch.manual_seed(0)
    model, images = build_model({**SMALL, "num_classes": 4}).eval(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        plain = model(images)  # every predictor starts at zero
        for step in model.steps:
            torch.nn.init.normal_(step.align.predictor.weight, std=0.1)
        outputs = model.outputs(images, model.offers)
    torch.testing.assert_close(outputs["bilinear"], plain)
    assert not torch.allclose(outputs["logits"], plain) and outputs["offsets_4"].any()


def test_sizes_that_no_stride_divides():
    model = build_model({**SMALL, "num_classes": 4}).eval()
    assert model.predict(torch.randn(1, 3, 70, 101)).shape == (1, 4, 70, 101)


def test_a_backbone_without_a_stride_is_refused():
    with pytest.raises(ValueError, match=r"the backbone has features at strides \[.*\]; \[8, 16\] are needed, too"):
        build_model({**SMALL, "num_classes": 4, "backbone_options": {"out_indices": (1, 4)}})


def test_fit_through_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logged = main(
        [
            "fit", "--config", "scrseg_camvid", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=1",
            *(f"--model.model.{name}={value}" for name, value in SMALL.items() if name != "name"),
            "--data.dataset={name: scenes, length: 8, size: 64}", "--data.crop=[64,64]", "--data.batch_size=4",
            "--offsets.pictures=2",
        ]
    ).trainer.logged_metrics  # fmt: skip
    torch.testing.assert_close(logged["train/loss"], logged["train/ce"] + logged["train/auxiliary"])
    run = tmp_path / "runs/scrseg_camvid"
    assert (run / "checkpoints/last.ckpt").exists()
    with Image.open(run / "offsets/epoch_001_map.png") as drawn:  # seven panels for each of two pictures
        assert drawn.width > 2 * drawn.height > 1000


def test_colors_of_offsets():
    """Right is red, up a green, left cyan, down a violet; white at zero, full from the longest on."""
    offsets = torch.tensor([[[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]], [[0.0, 2.0, 9.0], [0.0, 0.0, -1.0]]])  # dy, dx
    colors = direction_colors(offsets, 2.0)
    expected = [[[1, 1, 1], [1, 0, 0], [1, 0, 0]], [[0.75, 1, 0.5], [0.75, 0.5, 1], [0.5, 1, 1]]]
    torch.testing.assert_close(torch.from_numpy(colors).float(), torch.tensor(expected))


def test_changes_are_right_wrong_or_neither():
    labels = torch.tensor([[0, 0, 0, 0, 255]], dtype=torch.uint8)
    predicted, bilinear = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[0, 1, 0, 2, 2]])
    kinds = changes(labels, predicted, bilinear)
    assert kinds.int().tolist() == [[[0, 1, 0, 0, 0]], [[0, 0, 1, 0, 0]], [[0, 0, 0, 1, 0]]]
    wide = torch.nn.functional.pad(kinds, (0, 2043))  # of 2048 pixels: no change disappears
    painted = paint(torch.rand(3, 1, 2048), wide)
    assert painted.shape == (1, 683, 3)
    assert painted[0, :2].tolist() == [list(KINDS["right"]), list(KINDS["neither"])]
    assert (painted[0, 2:].min(-1) == painted[0, 2:].max(-1)).all()


@pytest.mark.parametrize("data", ["camvid", "cityscapes", "cityscapes_light", "bdd100k", "ade20k"])
def test_configurations_have_the_losses_of_the_system(data):
    config = yaml.safe_load(files("metricseg").joinpath(f"configs/scrseg_{data}.yaml").read_text())["model"]
    assert config["model"]["name"] == "scrseg" and config["loss"] == TERMS
