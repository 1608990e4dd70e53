"""Class weights from how often each class occurs: `python -m metricseg.data.balance --dataset camvid --root DIR`."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm import tqdm

from metricseg.data import DATASETS, build_dataset


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
    """Counts the pixels of a training split and prints the list for a configuration's `class_weight`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dataset", required=True, choices=sorted(DATASETS.entries))
    parser.add_argument("--root", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--on_error", default="raise", choices=("raise", "skip"), help="at a file that can't be read")
    parser.add_argument("--floor", type=float, default=1.1)
    args = parser.parse_args()
    data = build_dataset({"name": args.dataset, "root": args.root, "on_error": args.on_error}, args.split)
    counts = torch.zeros(256, dtype=torch.int64)
    for _, labels in tqdm(data, desc="count", mininterval=5):
        counts += torch.bincount(labels.flatten(), minlength=256)
    weights = balanced_weights(counts[: len(data.classes)].double().numpy(), args.floor)
    print("class_weight: [" + ", ".join(f"{w:.3f}" for w in weights) + "]")


if __name__ == "__main__":
    main()
