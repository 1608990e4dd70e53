"""The module shared by the adapters, on a model of this file."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metricseg.integrations.low_resolution import follow, need, skip_upsampling
from metricseg.losses import DiceLoss, FocalLoss


class Network(nn.Module):
    """A head, upsampling inside forward, and a second output."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 5, 4, stride=4)

    def forward(self, x):
        return {"out": F.interpolate(self.head(x), x.shape[-2:], mode="bilinear"), "size": x.shape[-2:]}


def place(output, kept):
    return {**output, **kept}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Network()
    skip_upsampling(model, {"out": model.head}, place)
    return model


def test_small_in_training_and_full_size_in_eval(model):
    x = torch.randn(2, 3, 16, 24)
    output = model(x)
    assert output["size"] == (16, 24)
    torch.testing.assert_close(output["out"], model.head(x), rtol=0, atol=0)
    model.eval()
    torch.testing.assert_close(model(x)["out"], Network.forward(model, x)["out"], rtol=0, atol=0)
    assert model(x)["out"].shape == (2, 5, 16, 24)


def test_nothing_of_label_size_is_computed(model, monkeypatch):
    elements = []
    interpolate = F.interpolate

    def record(*arguments, **options):
        elements.append(interpolate(*arguments, **options).numel())
        return interpolate(*arguments, **options)

    monkeypatch.setattr(F, "interpolate", record)
    model(torch.randn(2, 3, 16, 24))
    assert elements == [0]


def test_nothing_is_kept_between_forwards(model):
    x = torch.randn(2, 3, 16, 16)
    model(x)
    (hook,) = model._forward_hooks.values()
    assert hook.__self__.kept is None
    assert model.head(x).shape == (2, 5, 4, 4)  # a head called alone is as it was
    with pytest.raises(TypeError):
        model("no tensor")
    model.eval()
    assert model(x)["out"].shape == (2, 5, 16, 16)


def test_twice_is_once(model):
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)["out"]
    skip_upsampling(model, {"out": model.head}, place)
    torch.testing.assert_close(model(x)["out"], expected, rtol=0, atol=0)


def test_state_dict_copies_and_pickles(model):
    assert model.state_dict().keys() == Network().state_dict().keys()
    x = torch.randn(1, 3, 8, 8)
    other = copy.deepcopy(model)
    nn.init.zeros_(other.head.weight)
    assert not other(x)["out"].equal(model(x)["out"])  # its hooks are its own
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x)["out"], model(x)["out"])


def test_under_compile_in_one_graph(model):
    x = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)["out"], model(x)["out"])
    compiled(x)["out"].sum().backward()
    assert model.head.weight.grad.norm() > 0


def test_follow_reaches_losses_inside():
    losses = nn.ModuleList([FocalLoss(), DiceLoss(), nn.Identity()])
    follow(losses, True)
    assert losses[0].align_corners and losses[1].align_corners
    with pytest.raises(TypeError, match="criterion is a CrossEntropyLoss, which can't take low-resolution logits"):
        follow(nn.CrossEntropyLoss(), True)


def test_a_missing_host_is_named(tmp_path, monkeypatch):
    with pytest.raises(ImportError, match="no_such_host is not installed; this adapter needs it: pip install no-such"):
        need("no_such_host", "no-such-host")
    (tmp_path / "host_with_a_gap.py").write_text("import missing_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'missing_dependency'"):
        need("host_with_a_gap", "host-with-a-gap")


def test_the_package_imports_no_host():
    code = (
        "import sys, metricseg.integrations.low_resolution; "
        "sys.exit(any(m in sys.modules for m in ('torchvision', 'transformers', 'segmentation_models_pytorch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
