"""Training runs: python -m benchmarks.camvid COMPARISON ACTION [options], or validation or scenes in their place.

COMPARISON is a table of `rows.py`: networks (segmentation_models_pytorch's with an eager loss, and metricseg's), losses
(one network, five losses), centers (one network, six classifiers), segsort (a classifier, and retrieval with and
without labels) or decoders (three ways of upsampling, and context). ACTION:

    train      --data DIR --weights FILE [--rows ...] [--epochs N] [--seeds 0 1 2] [--device cuda]
    steps      --data DIR --weights FILE [--count 12]: time and memory of a training step, all rows in turn
    report     table, curves and summary of the runs in --work: <comparison>.{csv,json,png}
    pictures   --data DIR --weights FILE: embeddings, class centers or offsets of the runs in --work, first seed

DIR is CamVid in SegNet's layout, FILE the ImageNet weights of timm's `tf_efficientnet_lite0`. Each epoch ends with a
checkpoint in --work; the same command resumes there. `validation --data DIR --weights FILE` compares validation with
and without label-size logits (`validation.py`). `scenes` trains an epoch on generated scenes (`scenes.py`).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from . import pictures
from .recipe import prepare, train, train_loader
from .report import measure, report
from .rows import COMPARISONS, Comparison


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "benchmarks.camvid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, comparison in COMPARISONS.items():
        rows = list(comparison.rows)
        command = commands.add_parser(name, help=comparison.title)
        command.add_argument("action", choices=("train", "steps", "report", "pictures"))
        command.add_argument("--data", type=Path)
        command.add_argument("--weights", type=Path)
        command.add_argument("--rows", nargs="+", choices=rows, default=rows)
        command.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu"))
        command.add_argument("--work", type=Path, default=Path("runs") / comparison.stem, help="checkpoints and curves")
        command.add_argument("--epochs", type=int, default=comparison.epochs)
        command.add_argument("--seeds", type=int, nargs="+", default=[0])
        command.add_argument("--device", default="cpu")
        command.add_argument("--threads", type=int, default=torch.get_num_threads())
        command.add_argument("--workers", type=int, default=0, help="loader processes")
        command.add_argument("--eval-every", type=int, default=2, help="epochs between validations; the last has one")
        command.add_argument("--count", type=int, default=12, help="steps to measure")
    command = commands.add_parser("validation", help="with and without label-size logits")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--weights", type=Path, required=True)
    command.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu"))
    command.add_argument("--work", type=Path, default=Path("runs/camvid_validation"))
    command.add_argument("--epochs", type=int, default=1)
    command.add_argument("--device", default="cpu")
    command = commands.add_parser("scenes", help="an epoch of each system on generated scenes")
    command.add_argument("--pictures", type=int, default=200)
    command.add_argument("--device", default="cuda")
    return parser.parse_args()


def run(comparison: Comparison, args: argparse.Namespace) -> None:
    """Run an action of a comparison."""
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    make = partial(comparison.system, args.weights, args.device)
    if args.action == "report":
        report(comparison, args.work, args.out)
    elif args.action == "pictures":
        with torch.inference_mode():
            pictures.embeddings(comparison, args)
            pictures.class_centers(comparison, args)
            pictures.offsets(comparison, args)
    elif args.action == "steps":
        batch = [part.to(args.device) for part in next(iter(train_loader(args.data, 0)))]
        systems = {row: prepare(partial(make, row), 0, 900)[:2] for row in args.rows}
        measure(systems, batch, args.count, args.out / f"{comparison.stem}.json")
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        for seed in args.seeds:
            for row in args.rows:
                regions = comparison.rows[row].regions
                loader = train_loader(args.data, seed, args.workers, regions, args.work / "regions")
                stem = args.work / f"{row}-{seed}"
                files = stem.with_suffix(".pt"), stem.with_suffix(".csv")
                train(partial(make, row), loader, args.data, args.epochs, seed, args.eval_every, *files)


def main() -> None:
    """Dispatch."""
    args = arguments()
    if args.command == "scenes":
        from . import scenes

        scenes.main(args.device, args.pictures)
    elif args.command == "validation":
        from . import validation

        validation.run(args)
    else:
        run(COMPARISONS[args.command], args)


if __name__ == "__main__":
    main()
