"""Which loss and which decoder bring what, with error bars: python -m benchmarks.study --data DIR --weights FILE

Decoders and heads are trained on features of a frozen ImageNet network, computed once for augmented views, so that a
run takes a minute and every row of `rows.py` has several seeds. Runs of one seed share their start and their batches,
and differences are taken within a seed. Writes study.md's table (to the terminal), <out>/study.{json,png}.

DIR is CamVid in SegNet's layout, FILE the ImageNet weights of timm's `tf_efficientnet_lite0`. Features and finished
runs are kept in --work; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from .features import Features, same_settings, settings
from .report import report
from .rows import ROWS
from .training import score, train


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--views", type=int, default=4, help="augmented crops of each training picture")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="features and finished runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    for name in ("steps", "views", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it takes an integer >= 1")
    return args


def main() -> None:
    """Cache, train, report."""
    args = arguments()
    torch.set_num_threads(args.threads)
    sources = args.data, args.weights, args.views
    cache, runs = args.work / "features", args.work / f"steps_{args.steps}"
    same_settings(cache / "settings.json", settings(*sources))
    runs.mkdir(parents=True, exist_ok=True)
    splits = {split: Features(cache, split, *sources) for split in ("views", "train", "val")}
    todo = [(seed, row) for seed in args.seeds for row in args.rows if not (runs / f"{row}-{seed}.json").exists()]
    for seed, row in tqdm(todo, desc="runs", smoothing=0):
        path = runs / f"{row}-{seed}.json"
        model = train(ROWS[row], seed, args.steps, splits["views"], path.stem)
        path.with_suffix(".part").write_text(json.dumps(score(model, splits["val"], splits["train"])) + "\n")
        path.with_suffix(".part").replace(path)
    report(runs, args.out)


if __name__ == "__main__":
    main()
