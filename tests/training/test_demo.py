"""The demonstration's parts: its eager loss, the memory it measures, the table and the pictures it writes."""

import sys

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("matplotlib")
import torch
from PIL import Image

from metricseg.data import Scenes
from metricseg.demo import __main__ as demo
from metricseg.demo import figures as demo_figures
from metricseg.losses import build_loss
from metricseg.utils.memory import peak_memory


def test_eager_loss_is_the_same_loss():
    logits = torch.randn(2, 4, 8, 8, requires_grad=True)
    labels = torch.randint(0, 4, (2, 32, 32), dtype=torch.uint8)
    labels[:, 5:9] = 255
    eager, ours = demo.eager_focal(logits, labels), build_loss("focal")(logits, labels)
    torch.testing.assert_close(ours, eager)
    torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (ours, eager)), rtol=1e-4, atol=1e-7)


def test_loss_steps_measures_each_loss():
    found = demo.loss_steps([demo.eager_focal, build_loss("focal")], (1, 4, 8, 8, 16, 16), "cpu")
    assert len(found) == 2 and all(milliseconds > 0 for milliseconds, _ in found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the high-water mark is read from /proc")
def test_peak_memory_is_measured():
    peak = peak_memory(lambda: torch.ones(25_000_000).sum())
    assert peak == pytest.approx(100, rel=0.1)
    assert peak_memory(lambda: None) < 10


def test_table_and_figures(tmp_path):
    results = [
        demo.Result(name, [1.0, 0.5], [(2, 0.4)], 10.0, 4.0, 20.0, 300.0, memory)
        for name, memory in (("eager", 150.0), ("ours", None))
    ]
    text = demo.table(results)
    assert "val mIoU" in text and "1.0x" in text and text.splitlines()[-1].rstrip().endswith("-")
    samples = [Scenes("val", 2, 32)[k] for k in range(2)]
    images = torch.stack([s[0].as_subclass(torch.Tensor).float() / 127.5 - 1 for s in samples])
    labels = torch.stack([s[1].as_subclass(torch.Tensor) for s in samples])
    demo_figures.panel(tmp_path / "panel.png", images, labels, [labels.long() % 7, labels.long() % 7])
    demo_figures.curve(tmp_path / "curve.png", results)
    for name in ("panel.png", "curve.png"):
        assert min(Image.open(tmp_path / name).size) > 300
