"""Class weights from how often each class occurs: `python -m metricseg.data.balance --dataset camvid --root DIR`.

`--dataset` takes a registered name or a class path, and other options are arguments of that data set, read as YAML,
e.g. `--dataset folders --root DIR --classes '[background, road]'`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import yaml
from tqdm import trange

from metricseg.data import DATASETS, build_dataset, class_names


def balanced_weights(counts: np.ndarray, floor: float = 1.1) -> np.ndarray:
    """Weights [K] from pixel counts [K]: w_k = 1 / log(floor + p_k), p_k the class's share of the labeled pixels,
    scaled to sum_k p_k w_k = 1, so that a weighted loss keeps its size. Without a labeled pixel it raises ValueError.

    `floor` > 1 bounds a rare class's weight: 1.1 lets it be some 3 times a frequent one's, 1.02 some 20 times.

    Source: Paszke et al. 2016, ENet; with 1.1, Romera et al. 2018, ERFNet.
    """
    if not counts.sum() > 0:
        raise ValueError(f"counts are {counts.tolist()}; they take at least one labeled pixel")
    share = counts / counts.sum()
    weights = 1 / np.log(floor + share)
    return weights / (share * weights).sum()


def main() -> None:
    """Count the pixels of a training split and print the list for a configuration's `class_weight`."""
    parser = argparse.ArgumentParser(
        description=main.__doc__,
        epilog="Other options are arguments of the data set, e.g. --root DIR --on_error skip.",
        allow_abbrev=False,  # --data is an argument of the data set
    )
    parser.add_argument("--dataset", required=True, help=f"{', '.join(sorted(DATASETS.entries))}, or package.Class")
    parser.add_argument("--split", default="train")
    parser.add_argument("--floor", type=float, default=1.1)
    args, rest = parser.parse_known_args()
    words = [word for argument in rest for word in argument.split("=", 1 if argument.startswith("--") else 0)]
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        parser.error(f"{' '.join(rest)}: arguments of the data set are pairs --NAME VALUE")
    options = {name[2:]: yaml.safe_load(value) for name, value in zip(names, values, strict=True)}
    own = {"class_path": args.dataset, "init_args": options} if "." in args.dataset else None
    config = own or {"name": args.dataset, **options}
    classes, _ = class_names(config)
    data = build_dataset(config, args.split)
    counts = torch.zeros(256, dtype=torch.int64)
    for index in trange(len(data), desc="count", mininterval=5):
        counts += torch.bincount(data[index][1].flatten(), minlength=256)
    weights = balanced_weights(counts[: len(classes)].double().numpy(), args.floor)
    print("class_weight: [" + ", ".join(f"{w:.3f}" for w in weights) + "]")


if __name__ == "__main__":
    main()
