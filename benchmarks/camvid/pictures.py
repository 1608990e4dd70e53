"""Pictures of kept runs: embeddings, class centers before training and after, and offsets, of the rows that have
them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from metricseg.data import CamVid, eval_transform
from metricseg.visualization.centers import center_similarities, draw_maps, draw_matrices
from metricseg.visualization.embedding import draw
from metricseg.visualization.offsets import OffsetPictures
from metricseg.visualization.offsets import draw as draw_offsets
from metricseg.visualization.validation import Shown, each_picture

from .recipe import HALF, prepare
from .rows import Comparison
from .systems import System


def four_pictures(system: System, root: Path, names: Collection[str]) -> list[Shown]:
    """Four validation pictures with the network's outputs for them."""
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


def embeddings(comparison: Comparison, args: argparse.Namespace) -> None:
    """`<comparison>_<row>_{map,scatter}.png`: the embedding of four validation pictures, of rows with a loss on it."""
    for name in args.rows:
        if any(term.get("output") == "embedding" for term in comparison.rows[name].terms.values()):
            shown = four_pictures(trained(comparison, args, name), args.data, ("embedding",))
            paths = (args.out / f"{comparison.stem}_{name}_{kind}.png" for kind in ("map", "scatter"))
            draw(shown, CamVid.palette, CamVid.classes, *paths)


def class_centers(comparison: Comparison, args: argparse.Namespace) -> None:
    """`<comparison>_matrix.png`: cosines of the class centers of four validation pictures, before training and after;
    `<comparison>_maps.png`: two pictures' similarity to some of them, of the last row of `--rows` with centers."""
    matrices, started, shown = {}, [], []
    for name, row in ((name, comparison.rows[name]) for name in args.rows):
        if row.model.get("name") != "ccsnet":
            continue
        if row.model not in started:
            started.append(row.model)
            start = prepare(partial(comparison.system, args.weights, args.device, name), args.seeds[0], 1)[0]
            shown = four_pictures(start, args.data, ("logits", "centers"))
            matrices[f"{row.name.split(',')[0]}\nbefore training"] = center_similarities(shown)
        shown = four_pictures(trained(comparison, args, name), args.data, ("logits", "centers"))
        matrices[f"{row.name}\nafter training"] = center_similarities(shown)
    if matrices:
        draw_matrices(matrices, CamVid.classes, args.out / f"{comparison.stem}_matrix.png")
        draw_maps(shown[:2], CamVid.palette, CamVid.classes, args.out / f"{comparison.stem}_maps.png")


def offsets(comparison: Comparison, args: argparse.Namespace) -> None:
    """`<comparison>_offsets.jpg`: offsets of two validation pictures and what they change, of the last row of `--rows`
    that refines its upsampling."""
    refined = [name for name in args.rows if comparison.rows[name].model.get("upsampling") == "semantic"]
    if refined:
        shown = four_pictures(trained(comparison, args, refined[-1]), args.data, OffsetPictures.needs)
        draw_offsets(shown[:2], CamVid.palette, args.out / f"{comparison.stem}_offsets.jpg")
