"""CamVid, one DMLSeg network trained with five losses: what a contrast loss adds, and what it costs.

    python benchmarks/camvid_losses.py --data DIR --weights FILE --work DIR                       # six epochs, seed 0
    python benchmarks/camvid_losses.py --data DIR --weights FILE --work DIR --epochs 20 --seeds 0 1 2 --device cuda
    python benchmarks/camvid_losses.py --data DIR --weights FILE --time-steps 12                  # step time, memory
    python benchmarks/camvid_losses.py --work DIR --report
    python benchmarks/camvid_losses.py --data DIR --weights FILE --work DIR --pictures               # of the embeddings

All rows have the same network, weights at the start, batches, order and rates (`camvid_recipe.py`), bf16 autocast and
channels-last, no class weights, and 0.4 times cross-entropy on the encoder; they differ in the loss on the logits and
in the one on the embedding. Each epoch ends with a checkpoint in `--work`; the same command resumes there. Results go
to `--out`: `camvid_losses.{csv,json,md,png}`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from camvid_losses_report import measure, report
from camvid_recipe import HALF, prepare, train, train_loader
from camvid_systems import CLASSES, System
from torch import Tensor

from metricseg.data import CamVid, eval_transform
from metricseg.embedding_pictures import draw
from metricseg.losses import build_loss
from metricseg.models import build_model
from metricseg.models.layers import resize

AUXILIARY = {"auxiliary": {"output": "auxiliary", "weight": 0.4, "loss": "cross_entropy"}}
FOCAL = {"focal": {"loss": {"name": "focal", "gamma": 2.0}}, **AUXILIARY}


def contrast(name: str, stride: int = 1, **options: Any) -> dict[str, Any]:
    """Focal loss beside 0.1 times a contrast loss on the embedding."""
    return {
        **FOCAL,
        "contrast": {"output": "embedding", "weight": 0.1, "stride": stride, "loss": {"name": name, **options}},
    }


ROWS: dict[str, dict[str, Any]] = {
    "ce": {"ce": {"loss": "cross_entropy"}, **AUXILIARY},
    "focal": FOCAL,
    "margin": contrast("margin_contrast", margin=1.0),
    "infonce": contrast("pixel_contrast", temperature=0.1),
    "infonce_all": contrast("pixel_contrast", stride=2, temperature=0.1, sampling="all"),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu"))
    parser.add_argument("--work", type=Path, default=Path("runs/camvid_losses"), help="checkpoints and curves")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--eval-every", type=int, default=2, help="epochs between validations")
    parser.add_argument(
        "--time-steps", type=int, default=0, help="measure this many steps of all rows in turn, and stop"
    )
    parser.add_argument("--report", action="store_true", help="table and curves of the runs in --work")
    parser.add_argument("--pictures", action="store_true", help="draw the embeddings of the runs in --work, first seed")
    return parser.parse_args()


def dmlseg(weights: Path, device: str, row: str) -> System:
    """The network with the losses of `row`."""
    model = build_model(
        {
            "name": "dmlseg",
            "num_classes": CLASSES,
            "backbone": "tf_efficientnet_lite0",
            "weights": weights,
            "decoder_depth": 2,
        }
    ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    terms = build_loss({"name": "terms", **ROWS[row]}).to(device)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            outputs = model.outputs(images.contiguous(memory_format=torch.channels_last), terms.needs)
        return torch.stack(list(terms(outputs, labels).values())).sum()

    backbone, rest = (group["params"] for group in model.parameter_groups(1e-3, 3e-4))
    return System(model, backbone, rest, loss, model.predict, device)


@torch.inference_mode()
def pictures(args: argparse.Namespace, row: str) -> None:
    """`camvid_losses_<row>_{map,scatter}.png`: the embedding of four validation pictures."""
    model = dmlseg(args.weights, args.device, row).model
    kept = torch.load(args.work / f"{row}-{args.seeds[0]}.pt", weights_only=True, map_location=args.device)
    model.load_state_dict(kept["model"])
    model.eval()
    data, transform, shown = CamVid(args.data, "val"), eval_transform(mean=HALF, std=HALF), []
    for index in (0, 30, 60, 90):
        image, labels = (part.as_subclass(Tensor) for part in transform(*data[index]))
        found = model.outputs(image[None].to(args.device), ("logits", "embedding"))
        predicted = resize(found["logits"], labels.shape[-2:]).argmax(1)[0].cpu()
        shown.append((image, labels, predicted, F.normalize(found["embedding"], dim=1)[0].cpu()))
    paths = (args.out / f"camvid_losses_{row}_{kind}.png" for kind in ("map", "scatter"))
    draw(shown, data.palette, data.classes, *paths)


def main() -> None:
    """Dispatch."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.report:
        report(args.work, args.out)
        return
    make = partial(dmlseg, args.weights, args.device)
    if args.time_steps:
        batch = [part.to(args.device) for part in next(iter(train_loader(args.data, 0)))]
        measure({row: prepare(partial(make, row), 0, 900)[:2] for row in args.rows}, batch, args.time_steps, args.out)
        return
    if args.pictures:
        for row in args.rows:
            if any(term.get("output") == "embedding" for term in ROWS[row].values()):
                pictures(args, row)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        loader = train_loader(args.data, seed, args.workers)
        for row in args.rows:
            stem = args.work / f"{row}-{seed}"
            checkpoint, curve = stem.with_suffix(".pt"), stem.with_suffix(".csv")
            train(partial(make, row), loader, args.data, args.epochs, seed, args.eval_every, checkpoint, curve)


if __name__ == "__main__":
    main()
