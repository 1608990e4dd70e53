"""CamVid, the same recipe for two networks: segmentation_models_pytorch's DeepLabV3Plus with eager losses, and ours
with ours.

    python benchmarks/camvid.py --data DIR --weights FILE --model smp --epochs 20 --out benchmarks/results/cpu
    python benchmarks/camvid.py --data DIR --weights FILE --model metricseg --epochs 20 --out benchmarks/results/cpu
    python benchmarks/camvid.py --data DIR --weights FILE --time-steps 12 --out benchmarks/results/cpu
    python benchmarks/camvid.py --plot --out benchmarks/results/cpu

Both see the same pictures in the same order with the same augmentation (random scale 0.6 to 1.6, 320 x 320 crop,
flip, batch 8), AdamW with 3e-4 for the backbone and 1e-3 for the rest, weight decay 1e-2, poly 0.9, output stride 16.
DIR is CamVid in SegNet's layout, FILE the ImageNet weights of timm's `tf_efficientnet_lite0`. Each epoch ends with a
checkpoint in `--work`; the same command resumes there.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from camvid_report import plot, time_steps
from camvid_systems import SYSTEMS, System
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from metricseg.data import IGNORE, Augmented, CamVid, EpochSampler, eval_transform, train_transform
from metricseg.data.stream import seeded

HALF = (0.5, 0.5, 0.5)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--model", choices=sorted(SYSTEMS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu"))
    parser.add_argument("--work", type=Path, default=Path("runs/camvid"), help="checkpoints")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--eval-every", type=int, default=2, help="epochs between validations; the last epoch is always validated"
    )
    parser.add_argument(
        "--time-steps", type=int, default=0, help="time this many steps of both models in turn, and train neither"
    )
    parser.add_argument("--plot", action="store_true", help="curves of the runs kept in --out, and their summary")
    return parser.parse_args()


def train_loader(root: Path, seed: int, batch: int = 8) -> DataLoader[Any]:
    """The training batches, (float32 [8, 3, 320, 320], uint8 [8, 320, 320])."""
    data = Augmented(CamVid(root, "train"), train_transform((320, 320), scale=(0.6, 1.6), mean=HALF, std=HALF), seed)
    return DataLoader(data, batch, sampler=EpochSampler(len(data), seed), drop_last=True)


@torch.inference_mode()
def validate(system: System, root: Path) -> list[float]:
    """IoU of each class over the validation pictures at their own size, in [0, 1]."""
    system.model.eval()
    transform = eval_transform(mean=HALF, std=HALF)
    confusion = MulticlassConfusionMatrix(len(CamVid.classes), ignore_index=IGNORE)
    for sample in tqdm(CamVid(root, "val"), desc="validate", mininterval=5):
        image, labels = transform(*sample)
        confusion.update(system.predict(image[None]).argmax(1), labels[None].as_subclass(torch.Tensor).long())
    matrix = confusion.compute().double()
    hits = matrix.diag()
    return (hits / (matrix.sum(0) + matrix.sum(1) - hits)).tolist()


class Clock:
    """Seconds on the wall and seconds of processor time (user + system, all threads) since it was made, added to
    earlier ones."""

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self.wall0, self.cpu0 = time.perf_counter() - wall, time.process_time() - cpu

    def read(self) -> tuple[float, float]:
        """(wall, processor) seconds."""
        return time.perf_counter() - self.wall0, time.process_time() - self.cpu0


def train_epoch(system: System, loader: DataLoader[Any], optimizer: Any, schedule: Any, name: str) -> float:
    """One pass over the training pictures; the mean loss."""
    system.model.train()
    total = 0.0
    bar = tqdm(loader, desc=name, mininterval=5)
    for images, labels in bar:
        optimizer.zero_grad(set_to_none=True)
        loss = system.loss(images, labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return total / len(loader)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The curve as CSV, rewritten whole."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def prepare(args: argparse.Namespace, name: str, steps: int) -> tuple[System, Any, Any]:
    """A seeded system with its optimizer and poly schedule over `steps` steps."""
    torch.manual_seed(seeded(args.seed))
    system = SYSTEMS[name](args.weights)
    optimizer = torch.optim.AdamW(
        [{"params": system.backbone, "lr": 3e-4}, {"params": system.rest, "lr": 1e-3}], weight_decay=1e-2
    )
    return system, optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, 0.9)


def train(args: argparse.Namespace) -> None:
    """A whole run, or the rest of one."""
    loader = train_loader(args.data, args.seed)
    system, optimizer, schedule = prepare(args, args.model, args.epochs * len(loader))
    state = {"model": system.model, "optimizer": optimizer, "schedule": schedule}
    rows: list[dict[str, Any]] = []
    checkpoint = args.work / f"{args.model}.pt"
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        rows = kept["rows"]
        for key, part in state.items():
            part.load_state_dict(kept[key])
    clock = Clock(rows[-1]["train_seconds"], rows[-1]["train_cpu_seconds"]) if rows else Clock()
    for epoch in range(len(rows), args.epochs):
        torch.manual_seed(seeded(args.seed, epoch))
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        loss = train_epoch(system, loader, optimizer, schedule, f"{args.model} {epoch + 1}/{args.epochs}")
        wall, cpu = clock.read()
        due = (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs
        iou = validate(system, args.data) if due else None
        clock = Clock(wall, cpu)
        rows.append(
            {
                "epoch": epoch + 1,
                "train_loss": round(loss, 5),
                "val_miou": round(sum(iou) / len(iou), 5) if iou else "",
                "train_seconds": round(wall, 1),
                "train_cpu_seconds": round(cpu, 1),
                **{c: round(iou[k], 4) if iou else "" for k, c in enumerate(CamVid.classes)},
            }
        )
        write_rows(args.out / f"camvid_{args.model}.csv", rows)
        torch.save({**{key: part.state_dict() for key, part in state.items()}, "rows": rows}, checkpoint)


def main() -> None:
    """Dispatch."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    if args.plot:
        plot(args.out)
    elif args.time_steps:
        batch = next(iter(train_loader(args.data, args.seed)))
        time_steps(
            {name: prepare(args, name, 900)[:2] for name in ("smp", "metricseg")}, batch, args.time_steps, args.out
        )
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        train(args)


if __name__ == "__main__":
    main()
