"""CamVid, the same recipe for two networks: segmentation_models_pytorch's DeepLabV3Plus with eager losses, and ours
with ours.

    python -m benchmarks.camvid.two_networks --data DIR --weights FILE --model smp --epochs 20
    python -m benchmarks.camvid.two_networks --data DIR --weights FILE --model metricseg --epochs 20
    python -m benchmarks.camvid.two_networks --data DIR --weights FILE --time-steps 12
    python -m benchmarks.camvid.two_networks --plot

Both follow the recipe of `recipe.py`, on the same pictures in the same order.
DIR is CamVid in SegNet's layout, FILE the ImageNet weights of timm's `tf_efficientnet_lite0`. Each epoch ends with a
checkpoint in `--work`; the same command resumes there.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from .recipe import prepare, train, train_loader
from .systems import SYSTEMS
from .two_networks_report import plot, time_steps


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


def main() -> None:
    """Dispatch."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    if args.plot:
        plot(args.out)
        return
    loader = train_loader(args.data, args.seed)
    if args.time_steps:
        batch, names = next(iter(loader)), ("smp", "metricseg")
        systems = {name: prepare(partial(SYSTEMS[name], args.weights), args.seed, 900)[:2] for name in names}
        time_steps(systems, batch, args.time_steps, args.out)
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        checkpoint, curve = args.work / f"{args.model}.pt", args.out / f"camvid_{args.model}.csv"
        make = partial(SYSTEMS[args.model], args.weights)
        train(make, loader, args.data, args.epochs, args.seed, args.eval_every, checkpoint, curve)


if __name__ == "__main__":
    main()
