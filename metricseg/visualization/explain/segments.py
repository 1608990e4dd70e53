"""Explanation of a prediction: the segments of a picture, each with its neighbors and their source segments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from metricseg.data.base import IGNORE
from metricseg.data.module import SegmentationData
from metricseg.models.segsort import Retrieved, SegSort
from metricseg.training.retrieval import find_segments
from metricseg.utils.labels import nearest
from metricseg.visualization.explain.outlines import Outline, outline

SAME = 0.02  # distance of two mean directions of one segment at most: about one degree


class Source(NamedTuple):
    """The segment of a row of the bank: the number of its picture, the row's label, the size (h, w) of the grid, and
    its outline; None if it was not found again."""

    picture: int
    label: int
    size: tuple[int, int]
    outline: Outline | None


class Neighbor(NamedTuple):
    """A row of the bank and its cosine."""

    row: int
    similarity: float


class Segment(NamedTuple):
    """A segment of a picture.

    label: by the vote. truth: its most frequent label; None if it has no labeled pixel. right: share of its labeled
    pixels with the label of the vote. area: share of the picture. votes: [K]. neighbors: nearest first.
    """

    label: int
    truth: int | None
    right: float | None
    area: float
    votes: tuple[int, ...]
    neighbors: tuple[Neighbor, ...]
    outline: Outline

    @property
    def certainty(self) -> float:
        """Share of the votes that the label has."""
        return self.votes[self.label] / sum(self.votes)


class Explanation(NamedTuple):
    """A picture: uint8 [H, W, 3]; labels and predicted [H', W'] uint8, 255 for none; size (h, w) of the grid; segments
    from the largest to the smallest."""

    name: str
    picture: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    size: tuple[int, int]
    segments: tuple[Segment, ...]

    @property
    def accuracy(self) -> float | None:
        """Share of the labeled pixels that are right; None without one."""
        labeled = self.labels != IGNORE
        return float((self.predicted == self.labels)[labeled].mean()) if labeled.any() else None

    def rows(self) -> set[int]:
        """The rows of the bank that voted."""
        return {neighbor.row for segment in self.segments for neighbor in segment.neighbors}


def explanation(name: str, picture: np.ndarray, labels: Tensor, found: Retrieved) -> Explanation:
    """The explanation of one picture uint8 [H, W, 3] with labels [H', W'], of what `SegSort.retrieve` found for it."""
    ids = found.ids.cpu()  # [1, h, w]
    truth = labels.as_subclass(Tensor).cpu().long()  # [H', W']
    large = nearest(ids, truth.shape)[0]  # type: ignore[arg-type]
    table = torch.cat([found.labels.cpu(), torch.tensor([IGNORE])])  # id -1
    segments = []
    for segment in ids[ids >= 0].unique().tolist():
        mask, label = ids[0] == segment, int(found.labels[segment])
        inside = truth[large == segment]
        inside = inside[inside != IGNORE]
        pairs = zip(found.neighbors[segment].tolist(), found.similarities[segment].tolist(), strict=True)
        segments.append(
            Segment(
                label,
                int(inside.mode().values) if len(inside) else None,
                float((inside == label).double().mean()) if len(inside) else None,
                float(mask.double().mean()),
                tuple(int(n) for n in found.votes[segment].tolist()),
                tuple(Neighbor(row, cosine) for row, cosine in pairs if row >= 0),
                outline(mask.numpy()),
            )
        )
    segments.sort(key=lambda segment: -segment.area)
    size, maps = (ids.shape[1], ids.shape[2]), (truth, table[large])
    return Explanation(name, picture, *(value.numpy().astype(np.uint8) for value in maps), size, tuple(segments))


@dataclass
class Explainer:
    """Explain pictures with the bank of a network; the source segments of a picture are found once.

    The network has its bank, is in evaluation mode and on its device.
    """

    model: SegSort
    trainer: L.Trainer
    data: SegmentationData
    sources: dict[int, Source] = field(default_factory=dict)  # of a row
    visited: set[int] = field(default_factory=set)  # source pictures
    missing: set[int] = field(default_factory=set)  # rows whose segment was not found again

    @torch.no_grad()
    def explain(self, name: str, picture: np.ndarray, image: Tensor, labels: Tensor) -> Explanation:
        """The explanation of picture uint8 [H, W, 3], as the network gets it: image [3, H', W'] and labels."""
        images = image[None].to(next(self.model.parameters()).device).contiguous(memory_format=torch.channels_last)
        plugin = self.trainer.precision_plugin
        with plugin.val_step_context():
            embedding = self.model.outputs(plugin.convert_input(images), ("embedding",))["embedding"]
            found = self.model.retrieve(embedding)
        result = explanation(name, picture, labels, found)
        self.find(result.rows())
        return result

    def find(self, rows: Iterable[int]) -> None:
        """Find the source segments of `rows` again."""
        images, labels = self.model.bank.images.tolist(), self.model.bank.labels.tolist()
        wanted = {images[row] for row in rows} - self.visited
        for picture, segments in find_segments(self.model, self.trainer, self.data, wanted):
            self.visited.add(picture)
            for row, mask, distance in segments:
                same = distance <= SAME
                size = (mask.shape[0], mask.shape[1])
                self.sources[row] = Source(picture, labels[row], size, outline(mask.numpy()) if same else None)
        for row in rows:
            # a picture without a labeled cluster any more has no segment at all
            source = self.sources.setdefault(row, Source(images[row], labels[row], (1, 1), None))
            if source.outline is None:
                self.missing.add(row)


def short_name(name: str) -> str:
    """The name of a picture without folder and ending."""
    return Path(name).stem
