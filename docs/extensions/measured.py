"""Tables of benchmarks/results/cpu: the directive `measured FAMILY`, and the table of the README.

python docs/extensions/measured.py      prints the latter
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.harness.report import number, table  # noqa: E402

Row = dict[str, Any]
CPU = ROOT / "benchmarks" / "results" / "cpu"
# family, loss, shape, and how the README calls them
SUMMARY = (
    ("focal", "focal", "cityscapes-1x19x128x256-512x1024-fp32", "focal", "1x19x128x256 to 512x1024"),
    ("focal", "focal", "ade20k-1x150x128x128-512x512-fp32", "focal", "1x150x128x128 to 512x512"),
    ("contrast", "negatives", "sampled-1024x1024x256-fp32", "pixel contrast", "1,024 x 1,024 x 256"),
    ("contrast", "negatives", "pixels-8192x8192x256-fp32", "pixel contrast", "8,192 x 8,192 x 256"),
    ("centers", "cosine", "cityscapes-2x512x64x128-19-fp32", "cosine logits", "2x512x64x128, 19 classes"),
    ("refine", "refined", "decoder-1x128x64x128-256x512-fp32", "refined upsampling", "1x128x64x128 to 256x512"),
)


def steps(family: str) -> list[tuple[Row, dict[str, Row]]]:
    """(our row, the row of each peer) of each loss and shape: forward and backward, or forward if it has no more."""
    rows = json.loads((CPU / f"{family}.json").read_text())["rows"]
    phases: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        phases.setdefault((row["loss"], row["shape"]), {}).setdefault(row["phase"], []).append(row)
    found = []
    for of in phases.values():
        one = {row["contestant"]: row for row in of.get("step", of.get("forward", []))}
        ours = [row for row in one.values() if "times_as_fast_as" in row]
        found += [(row, {peer: one[peer] for peer in row["times_as_fast_as"]}) for row in ours]
    return found


def times(peer: Row, ours: Row, key: str) -> str:
    return number(peer[key] / ours[key], "x") if ours[key] else ""


def family_table(family: str) -> str:
    header = ["op", "shape", "ms", "MiB", "peer", "its time", "its memory"]
    body = []
    for ours, peers in steps(family):
        op = ours["loss"] if ours["phase"] == "step" else f"{ours['loss']}, {ours['phase']}"
        head = [op, ours["shape"], number(ours["median_ms"]), number(ours["peak_mib"])]
        for name, peer in peers.items():
            body.append([*head, name, times(peer, ours, "median_ms"), times(peer, ours, "peak_mib")])
            head = [""] * len(head)
    return table(header, body)


def summary_table() -> str:
    header = ["loss", "shape", "time", "eager", "torch.compile", "memory", "memory, eager"]
    body = []
    for family, loss, shape, name, size in SUMMARY:
        ((ours, peers),) = [(a, b) for a, b in steps(family) if (a["loss"], a["shape"]) == (loss, shape)]
        ratios = [times(peers[peer], ours, "median_ms") if peer in peers else "" for peer in header[3:5]]
        memory = [number(row["peak_mib"], " MiB") for row in (ours, peers["eager"])]
        body.append([name, size, number(ours["median_ms"], " ms"), *ratios, *memory])
    return table(header, body)


def setup(app: Any) -> dict[str, bool]:
    from docutils import nodes
    from sphinx.util.docutils import SphinxDirective

    class Measured(SphinxDirective):
        required_arguments = 1

        def run(self) -> list[nodes.Node]:
            family = self.arguments[0]
            about = json.loads((CPU / f"{family}.json").read_text())["machine"]
            head = (
                f"{about['cpu']} with {about['cpu_capability']}, {about['threads']} threads, torch {about['torch']}, "
                f"{about['date']}. Forward and backward, unless a row says else. The peer's time and memory are "
                "multiples of ours. Memory is the peak that one call adds. "
                f"[All rows](/benchmarks/results/cpu/{family}.md)."
            )
            return self.parse_text_to_nodes(f"{head}\n\n{family_table(family)}\n")

    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    print(summary_table())
