"""The table and the plot of the study."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from metricseg.data import CamVid

from .rows import ROWS

RARE = ("pole", "sign symbol", "fence", "pedestrian", "bicyclist")  # each less than 2 % of the training labels
SCORES = {"miou": "mIoU", "boundary": "mIoU within 3 pixels of a border", "rare": "mIoU of the five rare classes"}


def scores(found: dict[str, Any]) -> dict[str, float]:
    """The figures of a run, in percent."""
    rare = [found["iou"][CamVid.classes.index(name)] for name in RARE]
    parts = {"miou": found["iou"], "boundary": found["boundary"], "rare": rare}
    return {name: 100 * statistics.mean(part) for name, part in parts.items()}


def interval(values: list[float]) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t; NaN for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def summarize(runs: Path) -> dict[str, Any]:
    """Return, for each row, mean and deviation of its figures over seeds, and for a row with a baseline the difference
    of each seed, their mean and its interval."""
    found: dict[str, dict[int, dict[str, float]]] = {row: {} for row in ROWS}
    for path in sorted(runs.glob("*-*.json")):
        row, _, seed = path.stem.rpartition("-")
        found[row][int(seed)] = scores(json.loads(path.read_text()))
    summary: dict[str, Any] = {}
    for row, seeds in found.items():
        if not seeds:
            continue
        entry: dict[str, Any] = {"seeds": len(seeds)}
        base = found.get(ROWS[row].baseline, {})
        for name in SCORES:
            values = [figures[name] for figures in seeds.values()]
            entry[name] = {"mean": statistics.mean(values), "deviation": statistics.pstdev(values)}
            if common := sorted(set(seeds) & set(base)):
                apart = [seeds[seed][name] - base[seed][name] for seed in common]
                entry[name] |= {"differences": apart, "difference": statistics.mean(apart), "half": interval(apart)}
        summary[row] = entry
    return summary


def report(runs: Path, out: Path) -> None:
    """`study.json` and `study.png`; prints the table."""
    summary = summarize(runs)
    out.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine.record(), "runs": runs.name, "rows": summary}
    (out / "study.json").write_text(json.dumps(rounded(whole), indent=1) + "\n")
    print("| row | seeds | mIoU | against | mIoU | near borders | rare classes |")
    print("| --- |" + " --- |" * 6)
    for row, entry in summary.items():
        baseline, first = ROWS[row].baseline, entry["miou"]
        changes = [
            f"{entry[name]['difference']:+.1f} ± {entry[name]['half']:.1f}" if "half" in entry[name] else ""
            for name in SCORES
        ]
        cells = ROWS[row].name, str(entry["seeds"]), f"{first['mean']:.1f}", ROWS[baseline].name if baseline else ""
        print("| " + " | ".join((*cells, *changes)) + " |")
    plot(summary, out / "study.png")


def rounded(value: Any) -> Any:
    """Every float of a nested value to three places."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value


def plot(summary: dict[str, Any], path: Path) -> None:
    """Differences from the baseline: a dot for each seed, the mean with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row, entry in summary.items() if "half" in entry["miou"]][::-1]
    if not rows:
        return
    figure, axes = plt.subplots(1, len(SCORES), figsize=(13, 0.8 + 0.34 * len(rows)), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, SCORES.items(), strict=True):
        for place, row in enumerate(rows):
            entry = summary[row][name]
            clear = abs(entry["difference"]) > entry["half"]
            color = ("#0072b2" if entry["difference"] > 0 else "#d55e00") if clear else "#777777"
            axis.scatter(entry["differences"], [place] * len(entry["differences"]), s=14, color=color, alpha=0.45)
            axis.errorbar(entry["difference"], place, xerr=entry["half"], fmt="D", ms=4.5, color=color, capsize=3)
        axis.axvline(0, color="#333333", lw=0.8)
        axis.set_title(f"{title}, points", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    labels = [f"{ROWS[row].name}  (- {ROWS[ROWS[row].baseline].name})" for row in rows]
    axes[0].set_yticks(range(len(rows)), labels, fontsize=8.5)
    figure.suptitle("Difference from the baseline, paired by seed; mean with 95 % interval", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)
