"""Turns a run's JSON into what is kept and shown: a results file, a table and plots per op family.

    python -m benchmarks.harness.report [RAW ...] [--out FOLDER]

RAW is what `pytest benchmarks/ --benchmark-only --benchmark-json=RAW` wrote (default: .benchmarks/latest.json), or the
rows that METRICSEG_BENCH_ROWS=RAW.jsonl kept, of a run that was killed too. FOLDER is benchmarks/results/<device>
unless given.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.harness import machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

Row = dict[str, Any]

FIGURES = ("device_ms", "launches", "kernels_ms", "gb_per_s", "gexp_per_s", "gflop_per_s", "limit_ms", "times_limit",
           "times_outputs", "loss_error", "gradient_error")  # fmt: skip
RATIOS = ("times_as_fast_as", "memory_of", "times_bare")
COLORS = {
    "eager": "#7f7f7f",
    "torch.compile": "#c07a2c",
    "ours": "#1f5fa8",
    "triton": "#2a9d8f",
    "bare products": "#a58fbf",
    "bound": "#b0b0b0",
}


def load(path: Path) -> dict[str, Any]:
    """The JSON of a whole run; or its rows (.jsonl), of which the last may be cut off."""
    text = path.read_text()
    if path.suffix != ".jsonl":
        return json.loads(text)
    head, *rows = (json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines())
    return {**head, "benchmarks": rows}


def read(raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """(machine, rows per op family) of a pytest-benchmark JSON."""
    about = dict(raw["machine_info"], date=raw["datetime"][:10])
    families: dict[str, list[Row]] = defaultdict(list)
    for entry in raw["benchmarks"]:
        info, stats = entry["extra_info"], entry["stats"]
        times = {"median_ms": stats["median"] * 1e3, "min_ms": stats["min"] * 1e3, "rounds": stats["rounds"]}
        families[info["op"]].append({**info, **times})
    return about, families


def rounded(value: Any) -> Any:
    """Four significant digits: what repeats."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def results_json(about: dict[str, Any], rows: list[Row]) -> str:
    """One measurement a line, so that two runs can be compared by diff."""
    keys = ("shape", "loss", "phase", "contestant", "median_ms", "min_ms", "rounds", "peak_mib", *FIGURES, *RATIOS)
    lines = [json.dumps({k: rounded(row[k]) for k in keys if row.get(k) is not None}) for row in rows]
    return f'{{"machine": {json.dumps(rounded(about))},\n "rows": [\n  ' + ",\n  ".join(lines) + "\n ]}\n"


def describe(about: dict[str, Any]) -> str:
    versions = [f"{k} {about[k]}" for k in ("torch", "triton", "cuda", "driver", "python") if about.get(k)]
    device = about["device"] if about["device"] != "cpu" else f"{about['cpu']}, {about['threads']} threads"
    limits = about["limits"]
    return (
        f"{device}; {', '.join(versions)}; {about['date']}; commit {about['commit']}. "
        f"Limits measured in the same run: {limits['bytes_per_s'] / 1e9:.3g} GB/s (copy), "
        f"{limits['exp_per_s'] / 1e9:.3g} G exponentials/s (fp32, {limits['exp_by']}), matrix products "
        + ", ".join(f"{rate / 1e12:.3g} TFLOP/s ({kind})" for kind, rate in limits["flops_per_s"].items())
        + "."
    )


def table(header: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body])


def number(value: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    digits = f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return digits + unit


def ratio_table(rows: list[Row]) -> str:
    """Ours against each peer of one loss: time and memory of the peer over ours; our time over that of bare work."""
    peers = list(dict.fromkeys(row["contestant"] for row in rows if not (row["ours"] or row.get("bare"))))
    bare = list(dict.fromkeys(row["contestant"] for row in rows if row.get("bare")))
    on_device = any("device_ms" in row for row in rows)
    header = ["shape", "phase", "ours", "ms", *["on the device", "launches"] * on_device, "MiB"]
    header += [f"faster than {p}" for p in peers] + [f"memory of {p}" for p in peers]
    header += [*(f"time over {b}" for b in bare), "time over limit"]
    with_outputs = any("times_outputs" in row for row in rows)
    header += ["memory over outputs and gradients"] * with_outputs
    body = []
    for row in rows:
        if not row["ours"]:
            continue
        cells = [row["shape"], row["phase"], row["contestant"].removeprefix("metricseg ")]
        cells.append(number(row["median_ms"]))
        if on_device:
            cells += [number(row.get("device_ms")), str(row.get("launches", ""))]
        cells.append(number(row["peak_mib"]))
        cells += [number(row["times_as_fast_as"].get(p), "x") for p in peers]
        cells += [number(row.get("memory_of", {}).get(p), "x") for p in peers]
        cells += [number(row.get("times_bare", {}).get(b), "x") for b in bare]
        cells.append(number(row["times_limit"], "x"))
        body.append(cells + [number(row.get("times_outputs"), "x")] * with_outputs)
    return table(header, body)


def full_table(rows: list[Row]) -> str:
    header = ["loss", "shape", "phase", "contestant", "median ms", "min ms", "rounds", "peak MiB"]
    rates_of = [("GB/s", "gb_per_s"), ("Gexp/s", "gexp_per_s"), ("GFLOP/s", "gflop_per_s")]
    rates_of = [(unit, key) for unit, key in rates_of if any(row.get(key) for row in rows)]
    header += [*(unit for unit, _ in rates_of), "gradient error"]
    body = []
    for row in rows:
        rates = [number(row[k]) for k in ("median_ms", "min_ms")] + [str(row["rounds"]), number(row["peak_mib"])]
        rates += [number(row.get(key)) for _, key in rates_of]
        rates.append("not a loss" if row.get("bare") else f"{row['gradient_error']:.0e}")
        body.append([row["loss"], row["shape"], row["phase"], row["contestant"], *rates])
    return table(header, body)


def markdown(op: str, about: dict[str, Any], rows: list[Row], plots: list[str]) -> str:
    parts = [
        f"# `{op}`: measured",
        describe(about),
        "Written by `make bench`. A row's loss and gradient were checked against the reference in fp64 before it was "
        "timed. Times are medians of rounds in which the contestants took turns. MiB: peak memory that one call takes "
        "beyond what was there before, measured. Faster than, memory of: the peer's figure over ours. Time over "
        "limit: time over the largest of least bytes / copy rate, least exponentials / exponential rate and least "
        "operations of matrix products / matrix rate."
        + " On the device: ms of the kernels of one call, by torch's profiler; the rest is the host's work."
        * any("device_ms" in row for row in rows),
        *(f"![time and memory over size]({plot})" for plot in plots),
    ]
    for loss in dict.fromkeys(row["loss"] for row in rows):
        part = [row for row in rows if row["loss"] == loss]
        if any(row["ours"] for row in part):
            parts += [f"## {loss}", ratio_table(part)]
    return "\n\n".join([*parts, "## Every measurement", full_table(rows)]) + "\n"


def series_over_size(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows of one series in at least three sizes, by (series, loss, dtype)."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["phase"] == "step" and row["series"]:
            groups[row["series"], row["loss"], row["dtype"]].append(row)
    return {key: part for key, part in groups.items() if len({row["size"] for row in part}) >= 3}


def _color(row: Row) -> str:
    if row["ours"]:
        return COLORS["triton" if "triton" in row["contestant"] else "ours"]
    return COLORS.get(row["contestant"], "#8c564b")


def _lines(ax: Any, rows: list[Row], key: str, bound_key: str, bound_name: str) -> None:
    """One line per contestant with its name at the end, and the bound, dashed."""
    ends = []
    for name in dict.fromkeys(row["contestant"] for row in rows):
        line = [(r["size"], r[key], r) for r in rows if r["contestant"] == name and (r[key] or 0) > 0]
        line.sort(key=lambda point: point[:2])
        if not line:
            continue
        x, y, part = zip(*line, strict=True)
        ours = part[0]["ours"]
        ax.plot(x, y, color=_color(part[0]), lw=2.6 if ours else 1.8, marker="o", ms=5, zorder=3 if ours else 2)
        ends.append((y[-1], x[-1], name, _color(part[0]), "bold" if ours else "normal"))
    bound = sorted({(row["size"], row[bound_key]) for row in rows})
    ax.plot(*zip(*bound, strict=True), color=COLORS["bound"], lw=1.4, ls=(0, (4, 3)), zorder=1)
    ends.append((bound[-1][1], bound[-1][0], bound_name, "#808080", "normal"))
    _end_labels(ax, ends)


def _end_labels(ax: Any, ends: list[tuple[float, int, str, str, str]]) -> None:
    """Names beside the line ends, pushed apart where they would overlap."""
    ax.figure.canvas.draw()
    lowest = float("-inf")
    for y, x, name, color, weight in sorted(ends):
        _, up = ax.transData.transform((x, y))
        lowest = max(up, lowest + 15 * ax.figure.dpi / 72)
        ax.annotate(
            name, (x, y), xytext=(8, (lowest - up) * 72 / ax.figure.dpi), textcoords="offset points",
            va="center", color=color, fontsize=10, fontweight=weight, annotation_clip=False,
        )  # fmt: skip


def _axes(ax: Any, rows: list[Row], title: str) -> None:
    ax.set(xscale="log", yscale="log")
    sizes = {row["size"]: row["size_label"] for row in rows}
    ax.set_xticks(list(sizes), list(sizes.values()))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_tick_params(which="minor", length=0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel(rows[0]["size_name"])
    ax.set_title(title, loc="left", fontsize=11)
    ax.grid(True, which="major", color="#e6e6e6", lw=0.8)
    ax.spines[["top", "right"]].set_visible(False)


def plot(about: dict[str, Any], rows: list[Row], path: Path) -> None:
    """Time and memory over size, log-log, of one series."""
    device = about["device"] if about["device"] != "cpu" else f"{about['cpu']}, {about['threads']} threads"
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), dpi=130)
    figure.subplots_adjust(left=0.06, right=0.88, top=0.80, bottom=0.13, wspace=0.50)
    figure.suptitle(rows[0]["title"], x=0.06, ha="left", fontsize=12, fontweight="bold")
    figure.text(0.06, 0.895, f"{device}, torch {about['torch'].split('+')[0]}", fontsize=9.5, color="#606060")
    for ax, title in ((left, "time, ms"), (right, "peak extra memory, MiB")):
        _axes(ax, rows, title)
    _lines(left, rows, "median_ms", "limit_ms", "limit")
    _lines(right, rows, "peak_mib", "floor_mib", rows[0]["floor_name"])
    figure.savefig(path)
    plt.close(figure)


def write(raw: dict[str, Any], out: Path | None = None) -> list[Path]:
    """Writes <op>.json, <op>.md and plots for each op family of a run; returns the paths."""
    about, families = read(raw)
    folder = out or machine.ROOT / "benchmarks" / "results" / machine.slug(about["device"])
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for op, rows in families.items():
        plots = []
        for key, part in series_over_size(rows).items():
            plots.append(folder / ("-".join((op, *key)) + ".png"))
            plot(about, part, plots[-1])
        (folder / f"{op}.json").write_text(results_json(about, rows))
        (folder / f"{op}.md").write_text(markdown(op, about, rows, [p.name for p in plots]))
        written += [folder / f"{op}.json", folder / f"{op}.md", *plots]
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, nargs="*", default=[machine.ROOT / ".benchmarks" / "latest.json"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    absent = [str(raw) for raw in arguments.raw if not raw.exists()]
    for raw in arguments.raw:
        for path in write(load(raw), arguments.out) if raw.exists() else ():
            print(path)
    if absent:
        raise SystemExit(f"there is no {', '.join(absent)}")


if __name__ == "__main__":
    main()
