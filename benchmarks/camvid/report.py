"""What a comparison on CamVid reports: step time and memory of all rows in one run, and the curves of the kept runs."""

from __future__ import annotations

import csv
import json
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import machine
from metricseg.utils.memory import peak_memory

from .recipe import laps, step, write_rows
from .systems import System

if TYPE_CHECKING:
    from .rows import Comparison

Runs = dict[str, dict[int, list[dict[str, str]]]]  # by row and seed, the lines of a curve


def update(path: Path, key: str, value: Any) -> None:
    """Sets one key of a JSON file."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**kept, key: value}, indent=1) + "\n")


def measure(systems: dict[str, tuple[System, Any]], batch: Any, count: int, path: Path) -> None:
    """Step times of all rows in turn, then the peak memory of a step beyond weights, optimizer state and batch;
    into the JSON file `path` under "steps". `times_as_fast`: against the first row."""
    times = laps(systems, batch, count)
    first = next(iter(times.values()))["seconds"]
    report: dict[str, Any] = {"machine": machine.record(), "batch": list(batch[0].shape), "steps": count}
    for name, (system, optimizer) in systems.items():
        peaks = []
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            peaks.append(peak_memory(partial(step, system, optimizer, batch), system.device))
        optimizer.zero_grad(set_to_none=True)
        report[name] = {
            **times[name],
            "times_as_fast": round(first / times[name]["seconds"], 2),
            "peak_mb": round(statistics.median(p for p in peaks if p is not None)),
        }
    update(path, "steps", report)
    print(json.dumps(report, indent=1))


def report(comparison: Comparison, work: Path, out: Path) -> None:
    """`<comparison>.csv`, `<comparison>.json` under "runs" and `<comparison>.png` from the curves in `work`; prints the
    table."""
    file, names = out / comparison.stem, list(comparison.rows)
    runs: Runs = {name: {} for name in names}
    rows: list[dict[str, Any]] = []
    for path in sorted(work.glob("*-*.csv")):
        name, _, seed = path.stem.rpartition("-")
        with path.open() as lines:
            runs[name][int(seed)] = list(csv.DictReader(lines))
        rows += ({"row": name, "seed": seed, **row} for row in runs[name][int(seed)])
    rows.sort(key=lambda row: (names.index(row["row"]), int(row["seed"])))
    write_rows(file.with_suffix(".csv"), rows)

    summary: dict[str, Any] = {}
    for name, seeds in runs.items():
        last = [curve[-1] for curve in seeds.values() if curve[-1]["val_miou"]]
        if not last:
            continue
        summary[name] = {"epochs": len(next(iter(seeds.values()))), "seeds": len(last)}
        for key, spread in (("val_miou", "spread"), ("val_miou_boundary", "spread_boundary")):
            if values := [100 * float(line[key]) for line in last if line.get(key)]:
                summary[name][key] = round(statistics.mean(values), 2)
                summary[name][spread] = round(statistics.stdev(values), 2) if len(values) > 1 else None
    for name, other in comparison.shares.items():
        if name in summary and other in summary:
            share = summary[name]["val_miou"] / summary[other]["val_miou"]
            summary[name][f"share_of_{other}"] = round(share, 3)
    update(file.with_suffix(".json"), "runs", summary)
    steps = json.loads(file.with_suffix(".json").read_text()).get("steps", {})

    kinds = comparison.kind, "val mIoU, %", "within 3 pixels of a border, %", "training step, s", "memory of a step, MB"
    print(f"| {' | '.join(kinds)} |")
    print("|" + " --- |" * len(kinds))
    for name, found in summary.items():
        values = [
            f"{found[key]:.1f}" + (f" ± {found[spread]}" if found[spread] is not None else "") if key in found else ""
            for key, spread in (("val_miou", "spread"), ("val_miou_boundary", "spread_boundary"))
        ]
        cost = [f"{steps[name]['seconds']:.2f}", str(steps[name]["peak_mb"])] if name in steps else ["", ""]
        print(f"| {' | '.join((comparison.rows[name].name, *values, *cost))} |")
    plot(comparison, runs, steps, file.with_suffix(".png"))


def plot(comparison: Comparison, runs: Runs, steps: dict[str, Any], path: Path) -> None:
    """Validation mIoU over epochs, a line for each run, and the cost of a step if it was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [name for name in comparison.rows if name in steps]
    widths = [2.4, 1, 1] if measured else [1]
    figure, grid = plt.subplots(
        1, len(widths), figsize=(13 if measured else 7, 3.8), gridspec_kw={"width_ratios": widths}, squeeze=False
    )
    axes = grid[0]
    for name, seeds in runs.items():
        for index, curve in enumerate(seeds.values()):
            points = [(int(line["epoch"]), 100 * float(line["val_miou"])) for line in curve if line["val_miou"]]
            if points:
                row = comparison.rows[name]
                label = row.name if index == 0 else None
                axes[0].plot(*zip(*points, strict=True), marker="o", ms=4, color=row.color, label=label)
    axes[0].set(xlabel="epoch", ylabel="val mIoU, %")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False, fontsize=8.5)
    axes[0].grid(alpha=0.3)
    colors = [comparison.rows[name].color for name in measured]
    costs = ("seconds", "training step, s", "%.2f"), ("peak_mb", "memory of a step, MB", "%.0f")
    for axis, (key, title, form) in zip(axes[1:], costs, strict=False):
        bars = axis.bar(measured, [steps[n][key] for n in measured], color=colors, width=0.7)
        axis.bar_label(bars, fmt=form, padding=2, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", labelrotation=35)
        axis.margins(y=0.15)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    figure.suptitle(comparison.title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
