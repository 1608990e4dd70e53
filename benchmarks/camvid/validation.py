"""Validation on CamVid with and without label-size logits: mIoU, time and memory.

    python -m benchmarks.camvid validation --data DIR --weights FILE [--epochs 1]

A DeepLabv3+ trained for an epoch (a checkpoint in --work stays) predicts the validation pictures, at one scale and at
three with flips. The network runs once for both ways. "logits" interpolates each map to the label size, adds up the
softmax and takes the argmax, and torchmetrics counts; "views" counts out of the maps (metricseg_kernels.predict).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness import machine
from metricseg.data import CamVid, eval_transform
from metricseg.training.evaluation import IoU, Views, predict_views
from metricseg.utils.memory import peak_memory

from .recipe import HALF, train, train_loader
from .rows import COMPARISONS

SETTINGS = {"one scale": ((1.0,), False), "three scales with flips": ((0.75, 1.0, 1.25), True)}


def materialized(views: Views, size: tuple[int, int]) -> Tensor:
    """Labels [B, H, W] by label-size probabilities."""
    total: Tensor | None = None
    for logits, mirrored in zip(*views, strict=True):
        large = F.interpolate(logits.float(), size, mode="bilinear")
        probabilities = (large.flip(3) if mirrored else large).softmax(1)
        total = probabilities if total is None else total + probabilities
    assert total is not None
    return total.argmax(1)


def compare(
    model: torch.nn.Module, root: Path, device: str, scales: tuple[float, ...], flip: bool
) -> dict[str, object]:
    """The figures of one setting."""
    classes = len(CamVid.classes)
    metrics = {name: IoU(classes).to(device) for name in ("logits", "views")}
    seconds, peaks, network, differing, pixels = dict.fromkeys(metrics, 0.0), dict.fromkeys(metrics, 0.0), 0.0, 0, 0
    transform = eval_transform(mean=HALF, std=HALF)
    for sample in tqdm(CamVid(root, "val"), desc=f"validate, {len(scales)} scales", mininterval=5):
        image, labels = (part.as_subclass(Tensor)[None].to(device) for part in transform(*sample))
        start = time.perf_counter()
        views = predict_views(model, image, scales, flip)  # type: ignore[arg-type]
        network += time.perf_counter() - start
        size = (labels.shape[1], labels.shape[2])
        work: dict[str, Callable[[], None]] = {
            "logits": lambda: metrics["logits"].update(materialized(views, size), labels),  # noqa: B023
            "views": lambda: metrics["views"].update(views, labels),  # noqa: B023
        }
        for name, step in work.items():
            start = time.perf_counter()
            step()
            seconds[name] += time.perf_counter() - start
        if pixels == 0:  # of the first picture, again: what either takes once is there by then
            for metric, (name, step) in zip(metrics.values(), work.items(), strict=True):
                before = metric.confmat.clone()
                peaks[name] = peak_memory(step, device) or 0.0
                metric.confmat.copy_(before)
        differing += int((materialized(views, size) != views.labels(size)).sum())
        pixels += labels.numel()
    return {
        "network_s": network, "seconds": seconds, "peak_mb": peaks,
        "miou": {name: float(metric.compute().nanmean()) for name, metric in metrics.items()},
        "labels_that_differ": differing, "pixels": pixels,
    }  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Train, compare, print, and write camvid_validation.json."""
    args.work.mkdir(parents=True, exist_ok=True)
    make = partial(COMPARISONS["networks"].system, args.weights, args.device, "metricseg")
    files = args.work / "metricseg-0.pt", args.work / "metricseg-0.csv"
    train(make, train_loader(args.data, 0), args.data, args.epochs, 0, args.epochs, *files)
    model = make().model
    model.load_state_dict(torch.load(files[0], weights_only=True, map_location=args.device)["model"])
    model.eval()
    with torch.inference_mode():
        found = {name: compare(model, args.data, args.device, *setting) for name, setting in SETTINGS.items()}
    text = json.dumps({"machine": machine.record(), "epochs": args.epochs, **found}, indent=1)
    (args.out / "camvid_validation.json").write_text(text + "\n")
    print(text)
