"""What benchmarks/camvid_losses.py reports: step time and memory of all rows in one run, and the curves of the kept
runs."""

from __future__ import annotations

import csv
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import machine
from camvid_recipe import laps, step, write_rows
from camvid_systems import System

from metricseg.memory import peak_memory

NAMES = {
    "ce": "cross-entropy",
    "focal": "focal",
    "margin": "focal + margin contrast, sampled",
    "infonce": "focal + InfoNCE, sampled",
    "infonce_all": "focal + InfoNCE, all pixels",
}
COLOURS = {"ce": "#999999", "focal": "#0072b2", "margin": "#e69f00", "infonce": "#cc79a7", "infonce_all": "#009e73"}


def update(path: Path, key: str, value: Any) -> None:
    """Sets one key of a JSON file."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**kept, key: value}, indent=1) + "\n")


def measure(systems: dict[str, tuple[System, Any]], batch: Any, count: int, out: Path) -> None:
    """Step times of all rows in turn, then the memory that a step of each takes at its highest, beyond weights,
    optimizer state and batch; into `camvid_losses.json` under "steps"."""
    times = laps(systems, batch, count)
    report: dict[str, Any] = {"machine": machine.record(), "batch": list(batch[0].shape), "steps": count}
    for name, (system, optimizer) in systems.items():
        peaks = []
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            peaks.append(peak_memory(partial(step, system, optimizer, batch), system.device))
        optimizer.zero_grad(set_to_none=True)
        report[name] = {**times[name], "peak_mb": round(statistics.median(p for p in peaks if p is not None))}
    update(out / "camvid_losses.json", "steps", report)
    print(json.dumps(report, indent=1))


def report(work: Path, out: Path) -> None:
    """`camvid_losses.csv`, `camvid_losses.json` under "runs" and `camvid_losses.png` from the curves in `work`; prints
    the table."""
    runs: dict[str, dict[int, list[dict[str, str]]]] = {name: {} for name in NAMES}
    rows: list[dict[str, Any]] = []
    for path in sorted(work.glob("*-*.csv")):
        name, _, seed = path.stem.rpartition("-")
        with path.open() as file:
            runs[name][int(seed)] = list(csv.DictReader(file))
        rows += ({"row": name, "seed": seed, **row} for row in runs[name][int(seed)])
    rows.sort(key=lambda row: (list(NAMES).index(row["row"]), int(row["seed"])))
    write_rows(out / "camvid_losses.csv", rows)

    summary: dict[str, Any] = {}
    for name, seeds in runs.items():
        last = [100 * float(curve[-1]["val_miou"]) for curve in seeds.values() if curve[-1]["val_miou"]]
        if last:
            summary[name] = {
                "epochs": len(next(iter(seeds.values()))),
                "seeds": len(last),
                "val_miou": round(statistics.mean(last), 2),
                "spread": round(statistics.stdev(last), 2) if len(last) > 1 else None,
            }
    update(out / "camvid_losses.json", "runs", summary)
    steps = json.loads((out / "camvid_losses.json").read_text()).get("steps", {})

    print("| loss | val mIoU, % | training step, s | peak memory of a step, MB |\n| --- | --- | --- | --- |")
    for name, found in summary.items():
        spread = f" ± {found['spread']}" if found["spread"] is not None else ""
        cost = f"{steps[name]['seconds']:.2f} | {steps[name]['peak_mb']}" if name in steps else "|"
        print(f"| {NAMES[name]} | {found['val_miou']:.1f}{spread} | {cost} |")
    plot(runs, steps, out / "camvid_losses.png")


def plot(runs: dict[str, dict[int, list[dict[str, str]]]], steps: dict[str, Any], path: Path) -> None:
    """Validation mIoU over epochs, a line for each run, and the cost of a step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), gridspec_kw={"width_ratios": [2.4, 1, 1]})
    for name, seeds in runs.items():
        for index, curve in enumerate(seeds.values()):
            points = [(int(row["epoch"]), 100 * float(row["val_miou"])) for row in curve if row["val_miou"]]
            if points:
                label = NAMES[name] if index == 0 else None
                axes[0].plot(*zip(*points, strict=True), marker="o", ms=4, color=COLOURS[name], label=label)
    axes[0].set(xlabel="epoch", ylabel="val mIoU, %")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False, fontsize=8.5, loc="lower right")
    axes[0].grid(alpha=0.3)
    measured = [name for name in NAMES if name in steps]
    for axis, (key, title, form) in zip(
        axes[1:], (("seconds", "training step, s", "%.2f"), ("peak_mb", "memory of a step, MB", "%.0f")), strict=True
    ):
        bars = axis.bar(measured, [steps[n][key] for n in measured], color=[COLOURS[n] for n in measured], width=0.7)
        axis.bar_label(bars, fmt=form, padding=2, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", labelrotation=35)
        axis.margins(y=0.15)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    figure.suptitle("CamVid, DMLSeg on EfficientNet-Lite0: one network, five losses", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
