"""An epoch of each system on generated scenes through Lightning, under bf16-mixed.

    python -m benchmarks.camvid scenes

Losses of every family together, in the precision and memory format that users train in. Checks that the mean loss of
the last steps is finite and below that of the first.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning as L

from metricseg.data.module import SegmentationData
from metricseg.training.task import SegmentationTask

SMALL = {"backbone": "mobilenetv3_small_050", "channels": 64, "decoder_channels": 64}
SYSTEMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "deeplabv3plus": ({"name": "deeplabv3plus", **SMALL}, {"name": "focal", "gamma": 2.0}),
    "dmlseg": (
        {"name": "dmlseg", "backbone": "mobilenetv3_small_050"},
        {
            "name": "terms",
            "focal": {"loss": "focal"},
            "auxiliary": {"output": "auxiliary", "weight": 0.4, "loss": "cross_entropy"},
            "margin": {"output": "embedding", "weight": 0.1, "loss": {"name": "margin_contrast", "margin": 1.0}},
            "contrast": {"output": "embedding", "weight": 0.1, "loss": {"name": "pixel_contrast", "warmup_iters": 0}},
        },
    ),
    "ccsnet": (
        {"name": "ccsnet", "backbone": "mobilenetv3_small_050"},
        {
            "name": "terms",
            "ce": {"loss": "cross_entropy"},
            "dice": {"output": "guidance", "weight": 0.2, "loss": "dice"},
            "push": {"output": "push"},
            "pull": {"output": "pull", "weight": 0.3},
        },
    ),
}


class Losses(L.Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def train(name: str, device: str, pictures: int) -> None:
    """One epoch of a system, and its validation."""
    model, loss = SYSTEMS[name]
    data = SegmentationData(
        {"name": "scenes", "length": pictures, "size": 128}, crop=(128, 128), batch_size=8, eval_batch_size=16
    )
    task, losses = SegmentationTask(model, loss, data.num_classes, data.classes, backbone_lr=1e-3), Losses()
    trainer = L.Trainer(
        accelerator=device, devices=1, precision="bf16-mixed", max_epochs=1, logger=False, callbacks=[losses],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(task, data)
    seconds, quarter = time.perf_counter() - start, max(1, len(losses.values) // 4)
    first, last = (statistics.mean(part) for part in (losses.values[:quarter], losses.values[-quarter:]))
    miou = float(trainer.callback_metrics["val/miou"])
    print(f"{name}: loss {first:.3f} to {last:.3f}, val mIoU {miou:.3f}, {seconds:.1f} s", flush=True)
    assert last < first  # NaN fails too


def main(device: str, pictures: int) -> None:
    """Train every system."""
    for name in SYSTEMS:
        train(name, device, pictures)
