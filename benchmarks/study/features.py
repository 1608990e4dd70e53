"""Features of a frozen network for views of CamVid: computed once, kept as safetensors shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.camvid.recipe import HALF
from metricseg.data import Augmented, CamVid, eval_transform, train_transform
from metricseg.models.backbone import STAGES, Backbone

BACKBONE = "tf_efficientnet_lite0"
CROP, SCALE = (256, 256), (0.75, 1.6)
SHARD = 64  # pictures


class Batch(NamedTuple):
    """Features [B, C, H/s, W/s] bfloat16 channels-last at strides 4, 8, 16 and 32, and labels uint8 [B, H, W]."""

    stages: tuple[Tensor, ...]
    labels: Tensor


class Cached(nn.Module):
    """In the place of a network's `Backbone`: takes the features for the picture."""

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The features at stride 4 and the deepest, see `Backbone`."""
        return stages[0], stages[-1]

    def stages(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `Backbone`."""
        return stages


class Features:
    """The shards of one split: "views", augmented crops of the training pictures; "train" and "val", whole pictures.

    Args:
        folder: of the shards. Those that are missing are computed and written whole.
        split: see above.
        root: CamVid in SegNet's layout.
        weights: file of the network's weights.
        views: crops of each training picture.
    """

    def __init__(self, folder: Path, split: str, root: Path, weights: Path, views: int) -> None:
        normal = {"mean": HALF, "std": HALF}
        if split == "views":
            data = Augmented(CamVid(root, "train"), train_transform(CROP, scale=SCALE, **normal))
            count = views * len(data)
        else:
            data = Augmented(CamVid(root, split), eval_transform(**normal))
            count = len(data)
        starts = range(0, count, SHARD)
        paths = [folder / f"{split}-{start // SHARD:04d}.safetensors" for start in starts]
        missing = [(path, start) for path, start in zip(paths, starts, strict=True) if not path.exists()]
        if missing:
            network = Backbone(BACKBONE, 32, weights=weights).eval().to(memory_format=torch.channels_last)
            for path, start in tqdm(missing, desc=f"features of {split}", unit="shard"):
                save_whole(compute(network, data, range(start, min(start + SHARD, count))), path)
        self.shards, self.count = [load_file(path) for path in paths], count

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: list[int]) -> Batch:
        """The pictures or views at `indices`."""

        def part(name: str) -> Tensor:
            return torch.stack([self.shards[i // SHARD][name][i % SHARD] for i in indices])

        stages = (part(f"stride {s}").contiguous(memory_format=torch.channels_last) for s in STAGES)
        return Batch(tuple(stages), part("labels"))

    def batches(self, size: int) -> Iterator[Batch]:
        """All of them in order."""
        for start in range(0, self.count, size):
            yield self.batch(list(range(start, min(start + size, self.count))))


@torch.inference_mode()
def compute(network: Backbone, data: Augmented, indices: range) -> dict[str, Tensor]:
    """The tensors of a shard."""
    images, labels = zip(*(data[i] for i in indices), strict=True)
    found: list[list[Tensor]] = []
    for image in images:
        with torch.autocast("cpu", torch.bfloat16):
            batch = image.as_subclass(Tensor)[None].contiguous(memory_format=torch.channels_last)
            found.append(network.stages(batch))
    stages = (torch.cat(parts).to(torch.bfloat16).contiguous() for parts in zip(*found, strict=True))
    named = {f"stride {s}": x for s, x in zip(STAGES, stages, strict=True)}
    return {**named, "labels": torch.stack([x.as_subclass(Tensor) for x in labels])}


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    save_file(tensors, part)
    part.replace(path)


def settings(root: Path, weights: Path, views: int) -> dict[str, Any]:
    """Return what the cached features depend on; `same_settings` compares it with that of a kept cache."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    pictures = {split: len(CamVid(root, split)) for split in ("train", "val")}
    return {"backbone": BACKBONE, "weights": digest, "pictures": pictures, "views": views, "crop": CROP, "scale": SCALE}


def same_settings(path: Path, now: dict[str, Any]) -> None:
    """Write `now` to `path`, or raise ValueError if there are others."""
    now = json.loads(json.dumps(now))
    if path.exists():
        kept = json.loads(path.read_text())
        if changed := [key for key in now if kept.get(key) != now[key]]:
            words = ", ".join(f"{key} {kept.get(key)} (now {now[key]})" for key in changed)
            raise ValueError(f"{path.parent} is of a study with {words}; give another folder as --work")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=1) + "\n")
