"""Comparisons on CamVid: tables whose rows are one network with other losses, or another classifier, trained alike.

A script names its rows and calls `main`: `losses.py`, `centers.py`. All rows of a table have the same
network up to where they differ, weights at the start, batches, order and rates (`recipe.py`), bf16 autocast and
channels-last. Each epoch ends with a checkpoint in `--work`; the same command resumes there. Results go to `--out`:
`<comparison>.{csv,json,png}`, and pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metricseg.data import CamVid, eval_transform
from metricseg.losses import build_loss
from metricseg.models import build_model
from metricseg.validation_pictures import Shown, each_picture

from .recipe import HALF, prepare, train, train_loader
from .report import measure, report
from .systems import CLASSES, System


@dataclass(frozen=True)
class Row:
    """A network and the terms of its loss, with the name and the colour that it is shown in."""

    name: str
    colour: str
    model: dict[str, Any]
    terms: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """The rows of a table by a short name, what they are, the title of the plot, and the stem of the result files."""

    stem: str
    kind: str
    title: str
    rows: dict[str, Row]

    def system(self, weights: Path, device: str, row: str) -> System:
        """The network of `row` with its losses."""
        model = build_model(
            {
                **self.rows[row].model,
                "num_classes": CLASSES,
                "backbone": "tf_efficientnet_lite0",
                "weights": weights,
                "decoder_depth": 2,
            }
        ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        terms = build_loss({"name": "terms", **self.rows[row].terms}).to(device)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(device, torch.bfloat16):
                outputs = model.outputs(images.contiguous(memory_format=torch.channels_last), terms.needs, labels)
            return torch.stack(list(terms(outputs, labels).values())).sum()

        backbone, rest = (group["params"] for group in model.parameter_groups(1e-3, 3e-4))
        return System(model, backbone, rest, loss, model.predict, device)


def arguments(comparison: Comparison, doc: str) -> argparse.Namespace:
    """The command line."""
    rows = list(comparison.rows)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu"))
    parser.add_argument("--work", type=Path, default=Path("runs") / comparison.stem, help="checkpoints and curves")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--eval-every", type=int, default=2, help="epochs between validations")
    parser.add_argument(
        "--time-steps", type=int, default=0, help="measure this many steps of all rows in turn, and stop"
    )
    parser.add_argument("--report", action="store_true", help="table and curves of the runs in --work")
    parser.add_argument("--pictures", action="store_true", help="draw outputs of the runs in --work, first seed")
    return parser.parse_args()


def main(comparison: Comparison, doc: str, pictures: Callable[[argparse.Namespace], None]) -> None:
    """Dispatch."""
    args = arguments(comparison, doc)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.report:
        report(comparison, args.work, args.out)
        return
    if args.pictures:
        with torch.inference_mode():
            pictures(args)
        return
    make = partial(comparison.system, args.weights, args.device)
    if args.time_steps:
        batch = [part.to(args.device) for part in next(iter(train_loader(args.data, 0)))]
        systems = {row: prepare(partial(make, row), 0, 900)[:2] for row in args.rows}
        measure(systems, batch, args.time_steps, args.out / f"{comparison.stem}.json")
        return
    args.work.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        loader = train_loader(args.data, seed, args.workers)
        for row in args.rows:
            stem = args.work / f"{row}-{seed}"
            checkpoint, curve = stem.with_suffix(".pt"), stem.with_suffix(".csv")
            train(partial(make, row), loader, args.data, args.epochs, seed, args.eval_every, checkpoint, curve)


def four_pictures(system: System, root: Path, names: Collection[str]) -> list[Shown]:
    """Four validation pictures with what the network makes of them."""
    system.model.eval()
    data, transform, shown = CamVid(root, "val"), eval_transform(mean=HALF, std=HALF), []
    for index in (0, 30, 60, 90):
        image, labels = (part.as_subclass(Tensor)[None].to(system.device) for part in transform(*data[index]))
        shown += each_picture(image, labels, system.model.outputs(image, {"logits", *names}), names)
    return shown


def trained(comparison: Comparison, args: argparse.Namespace, row: str) -> System:
    """The network of `row` with the weights of its kept run."""
    system = comparison.system(args.weights, args.device, row)
    kept = torch.load(args.work / f"{row}-{args.seeds[0]}.pt", weights_only=True, map_location=args.device)
    system.model.load_state_dict(kept["model"])
    return system
