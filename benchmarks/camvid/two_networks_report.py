"""Reports of the comparison of two networks: step times of both in one run, and the curves of the kept runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import machine

from .recipe import laps
from .systems import System

COLOURS = {"smp": "#d55e00", "metricseg": "#0072b2"}
NAMES = {"smp": "smp DeepLabV3Plus, eager cross-entropy, fp32", "metricseg": "metricseg, fused focal loss, bf16"}


def time_steps(systems: dict[str, tuple[System, Any]], batch: Any, count: int, out: Path) -> None:
    """Times `count` training steps of each system in turn (loss, backward, optimizer), after two that are not counted.

    Writes `camvid_steps.json`: median and range of wall seconds, median of processor seconds (all threads), and the
    ratio of the first to each.
    """
    times = laps(systems, batch, count)
    first = times[next(iter(systems))]["seconds"]
    report: dict[str, Any] = {"machine": machine.record(), "batch": list(batch[0].shape), "steps": count}
    for name, measured in times.items():
        report[name] = {**measured, "times_as_fast": round(first / measured["seconds"], 2)}
    (out / "camvid_steps.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a curve; cells that were left empty are absent."""
    with path.open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def plot(out: Path) -> None:
    """Writes `camvid.png` (mIoU over epochs, over minutes of wall and of processor time) and `camvid.json`, from the
    CSV files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = {name: read(out / f"camvid_{name}.csv") for name in NAMES if (out / f"camvid_{name}.csv").exists()}
    axes_of = (
        ("epoch", 1.0, "epoch"),
        ("train_seconds", 60.0, "training, minutes on the wall"),
        ("train_cpu_seconds", 60.0, "training, minutes of processor time"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), sharey=True)
    for axis, (key, unit, label) in zip(axes, axes_of, strict=True):
        for name, rows in runs.items():
            points = [(row[key] / unit, row["val_miou"]) for row in rows if "val_miou" in row]
            axis.plot(*zip(*points, strict=True), marker="o", ms=4, color=COLOURS[name], label=NAMES[name])
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("val mIoU, 11 classes")
    axes[0].legend(frameon=False, loc="lower right", fontsize=8.5)
    figure.suptitle("CamVid, EfficientNet-Lite0, 320 x 320 crops, batch 8, same pictures in the same order")
    figure.tight_layout()
    figure.savefig(out / "camvid.png", dpi=120)
    plt.close(figure)

    summary: dict[str, Any] = {"machine": machine.record()}
    for name, rows in runs.items():
        done = [row for row in rows if "val_miou" in row]
        summary[name] = {
            "epochs": len(rows),
            "val_miou": done[-1]["val_miou"],
            "best_val_miou": max(row["val_miou"] for row in done),
            "train_minutes": round(rows[-1]["train_seconds"] / 60, 1),
            "train_processor_minutes": round(rows[-1]["train_cpu_seconds"] / 60, 1),
        }
    (out / "camvid.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
