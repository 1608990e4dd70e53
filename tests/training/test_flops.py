"""Multiply-adds of a prediction: against a sum over the layers that ran, the paper's figure, and the command line."""

import re
from importlib.resources import files

import pytest

pytest.importorskip("lightning")
import torch
import yaml
from torch import nn

from metricseg.cli import main
from metricseg.models import build_model
from metricseg.training.flops import count

PAPER = 137.9e9  # of the light form at 1024 x 2048, as Wang et al. report it


def packaged(name):
    """The network of a packaged configuration, without weights."""
    config = yaml.safe_load(files("metricseg").joinpath(f"configs/{name}.yaml").read_text())["model"]["model"]
    return build_model({**config, "pretrained": False, "num_classes": 19})


def work_of_layers(model, images):
    """Multiply-adds of the convolutions and linear layers that a prediction runs, each from its output and weights."""
    work = []

    def add(layer, _, output):
        work.append(output.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    with torch.no_grad():
        model.eval()(images)
    return sum(work)


def test_light_form_has_the_work_of_the_paper():
    work = count(packaged("scrseg_cityscapes_light"), (1024, 2048))
    assert abs(work.multiply_adds - PAPER) < 0.05 * PAPER
    assert sum(work.parts.values()) == work.multiply_adds and next(iter(work.parts)) == "backbone"


@pytest.mark.parametrize("name", ["scrseg_cityscapes_light", "scrseg_cityscapes"])
def test_count_is_the_sum_over_layers_and_attention(name):
    """Attention of C channels and N pixels: two products C x N x C over channels, N x d x N and N x N x C over space."""
    model, (height, width) = packaged(name), (64, 96)
    expected = work_of_layers(model, torch.randn(1, 3, height, width))
    if name == "scrseg_cityscapes":
        query = model.context[0].attention.query
        hidden, channels, pixels = query.out_channels, query.in_channels, height * width // 16**2
        expected += 2 * channels**2 * pixels + pixels**2 * (hidden + channels)
    assert count(model, (height, width)).multiply_adds == expected


def test_command_prints_the_count_and_fetches_no_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("weights are read"))
    options = ["--config=scrseg_cityscapes_light", "--trainer.accelerator=cpu", "--model.model.weights=nowhere.pth"]
    network = main(["flops", *options, "--size=[64,96]"]).model.model
    found = count(network, (64, 96))
    first, *parts = capsys.readouterr().out.splitlines()[-1 - len(found.parts) :]
    assert first.startswith(f"SCRSeg at 64 x 96: {found.multiply_adds / 1e9:.1f} G multiply-adds")
    assert [line.split()[-1] for line in parts] == list(found.parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("system", ["ccsnet", "segsort"])
def test_other_systems_are_counted(system):
    model = build_model({"name": system, "backbone": "mobilenetv3_small_050", "num_classes": 4})
    small, large = (count(model, size) for size in ((64, 96), (128, 192)))
    assert sum(large.parts.values()) == large.multiply_adds > small.multiply_adds > small.parts["backbone"] > 0
    assert small.parameters == sum(p.numel() for p in model.parameters())


def test_wrong_sizes_are_named():
    model = packaged("scrseg_cityscapes_light")
    for size in ((64,), (0, 64), (64.0, 64), (True, 64)):
        with pytest.raises(ValueError, match=rf"size is {re.escape(repr(size))}; it takes .*, two integers >= 1"):
            count(model, size)
    with pytest.raises(ValueError, match=r"SCRSeg can't be counted at size \[1, 1\]: .*Kernel size"):
        count(model, (1, 1))
