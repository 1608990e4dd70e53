"""Segments by retrieval: `SegSort`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import metricseg_kernels as kernels
from metricseg.models.bank import BankRows, PrototypeBank
from metricseg.models.base import MODELS
from metricseg.models.deeplab import DeepLabV3Plus
from metricseg.models.layers import conv_norm_act
from metricseg.utils.labels import check_labels, nearest
from metricseg_kernels.core.labels import IgnoreIndex, is_label, resolve_ignore_index

MOST_NEIGHBORS = 1024
SMALLEST_SHARE = 1e-3  # of the votes, for a class without a vote


class Retrieved(NamedTuple):
    """A prediction and the neighbors that voted for it.

    ids: [B, h, w] int64, the segment of each pixel, over the batch; -1 for a pixel whose embedding is not finite.
    labels: [S] int64, the label of each segment by majority vote; -1 for a segment without a pixel or a neighbor.
    neighbors: [S, k] int64, the rows of the bank that voted, nearest first; -1 if there is none.
    similarities: [S, k], the cosine of each; -inf if there is none.
    votes: [S, K], how many of them have each class.
    """

    ids: Tensor
    labels: Tensor
    neighbors: Tensor
    similarities: Tensor
    votes: Tensor


@MODELS.register("segsort")
class SegSort(DeepLabV3Plus):
    """The system of Hwang et al. 2019: the decoder features of a DeepLabv3+ feed an embedding of every pixel, and there
    is no classifier. Segments are clusters of pixels, and a segment takes the label of similar ones of the training
    set.

    Outputs: "embedding" [B, D, H/4, W/4], of which only the direction counts; "logits" [B, K, H/4, W/4], for
    prediction, without a gradient.

    Its loss (`metricseg.losses.SegSortLoss`, configurations `segsort_*`) is on the embedding, with labels or with the
    regions of an oversegmentation. Its clusters are its own: a prediction may have more, and thin objects need them.

    Prediction: spherical k-means of each image, the mean direction of each cluster, its `neighbors` nearest prototypes
    in the bank, and their vote. Of equally frequent classes that of the nearest neighbor wins. The logits of a pixel
    are the logarithms of the shares of the votes of its segment, the winner with half a vote more. So their largest
    entry is the label by `metricseg_kernels.knn_vote`, interpolation paints it at label resolution, and scales and
    mirror images average votes. If the bank has fewer rows than `neighbors`, all of them vote. An empty bank raises
    ValueError.

    The bank has one row per cluster of a training picture: the mean direction of the pixels of the most frequent
    label of the cluster, with that label. `fit` builds it from `pictures` training pictures before each validation,
    and checkpoints contain it. `metricseg bank` builds it from all of them, as a file.

    From the paper: D = 32, 5 x 5 blocks, ten iterations, location, and 15 neighbors. The network around the
    embedding is that of the other systems, not the paper's PSPNet. Clusters use the coordinates of the crop, not those
    of the picture before augmentation.

    Args:
        num_classes: K.
        embedding_channels: D.
        neighbors: k, 1 to 1024.
        grid, iterations, location: of k-means, see `metricseg_kernels.spherical_kmeans`.
        bank: file of a bank. It takes the place of that of a checkpoint.
        index: file of an index of FAISS of this bank, whose prototypes are not read then. Neighbors are those that the
            index finds.
        pictures: of the training set, evenly spaced, for the bank that `fit` validates with; 0 for all.
        options: see `DeepLabV3Plus`.

    Raises ValueError for an argument out of range, and the errors of `PrototypeBank`.

    Source: Hwang et al., SegSort: Segmentation by Discriminative Sorting of Segments, ICCV 2019.
    """

    offers = ("embedding", "logits")
    predicts_from = "embedding"

    def __init__(
        self,
        num_classes: int,
        embedding_channels: int = 32,
        neighbors: int = 15,
        grid: tuple[int, int] = (5, 5),
        iterations: int = 10,
        location: bool = True,
        bank: str | Path | None = None,
        index: str | Path | None = None,
        pictures: int = 200,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, **options)
        bounds = (
            ("embedding_channels", embedding_channels, 1), ("neighbors", neighbors, 1), ("iterations", iterations, 0),
            ("pictures", pictures, 0),
        )  # fmt: skip
        for name, value, least in bounds:
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; it takes an integer >= {least}")
        if neighbors > MOST_NEIGHBORS:
            raise ValueError(f"neighbors is {neighbors}; it takes at most {MOST_NEIGHBORS}")
        if not isinstance(grid, tuple | list) or len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid):
            raise ValueError(f"grid is {grid!r}; it takes (rows, columns), two integers >= 1")
        width = self.classifier.in_channels
        del self.classifier
        self.embedding = nn.Sequential(conv_norm_act(width, width), nn.Conv2d(width, embedding_channels, 1))
        self.neighbors, self.pictures = neighbors, pictures
        self.grid, self.iterations, self.location = (grid[0], grid[1]), iterations, location
        self.bank = PrototypeBank(embedding_channels, num_classes, bank, index)

    def outputs(self, images: Tensor, names: Collection[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """[B, 3, H, W] -> the outputs asked for, see the class."""
        embedding = self.embedding(self.features(images)[0])
        found = {"embedding": embedding}
        if "logits" in names:
            found["logits"] = self.logits(self.retrieve(embedding))
        return {name: found[name] for name in names}

    def clusters(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(v [B h w, D] float32, the pixels at unit norm; ids [B, h, w], clusters numbered over the batch, or -1)."""
        embedding = embedding.detach().float()
        found = kernels.spherical_kmeans(
            embedding, grid=self.grid, iterations=self.iterations, location=self.location
        )  # [B, h, w]
        rows = kernels.gather_pixels(embedding, torch.arange(found.numel(), device=found.device))
        first = self.grid[0] * self.grid[1] * torch.arange(len(found), device=found.device)[:, None, None]
        return rows, torch.where(found < 0, -1, found + first)

    @torch.no_grad()
    def retrieve(self, embedding: Tensor) -> Retrieved:
        """The segments of "embedding" [B, D, h, w], their labels, and the rows of the bank that say so.

        Raises ValueError if the bank is empty.
        """
        self.bank.check_filled()
        rows, ids = self.clusters(embedding)
        segments = len(ids) * self.grid[0] * self.grid[1]
        prototypes = kernels.segment_mean(rows, ids.flatten(), segments)  # [S, D]
        similarities, neighbors = self.bank.nearest(prototypes, self.neighbors)
        present = torch.zeros(segments + 1, dtype=torch.bool, device=ids.device)
        present = present.index_fill_(0, ids.flatten() + 1, True)[1:, None]  # [S, 1]; place 0 is for the id -1
        neighbors = neighbors.masked_fill(~present, -1)
        similarities = similarities.masked_fill(~present, -torch.inf)
        labels, votes = vote(neighbors, self.bank.labels, self.num_classes)
        return Retrieved(ids, labels, neighbors, similarities, votes)

    def logits(self, found: Retrieved) -> Tensor:
        """[B, K, h, w] float32, see the class; zeros for a pixel in no segment."""
        winner = torch.arange(self.num_classes, device=found.labels.device) == found.labels[:, None]  # [S, K]
        weight = found.votes + 0.5 * winner
        shares = weight / weight.sum(1, keepdim=True).clamp(min=1)
        table = torch.cat([(shares + SMALLEST_SHARE).log(), shares.new_zeros(1, self.num_classes)])  # id -1: zeros
        return table[found.ids].permute(0, 3, 1, 2)

    @torch.no_grad()
    def bank_rows(self, images: Tensor, labels: Tensor, first: int = 0, ignore_index: IgnoreIndex = "auto") -> BankRows:
        """Rows for a bank, of images [B, 3, H, W] with labels [B, H, W] at any size: one for each cluster with a label.

        `first` is the number of the first picture. Of equally frequent labels the lowest counts.
        """
        return self.bank_segments(images, labels, first, ignore_index)[0]

    @torch.no_grad()
    def bank_segments(
        self, images: Tensor, labels: Tensor, first: int = 0, ignore_index: IgnoreIndex = "auto"
    ) -> tuple[BankRows, Tensor]:
        """`bank_rows`, and the row that each pixel is a part of, [B, h, w] int64, -1 for none."""
        rows, ids = self.clusters(self.outputs(images, ("embedding",))["embedding"])
        ignored = resolve_ignore_index(ignore_index, self.num_classes)
        check_labels(labels, self.num_classes, ignored)
        kinds = nearest(labels, ids.shape[1:]).long()  # [B, h, w]
        places, clusters = ids.flatten(), len(ids) * self.grid[0] * self.grid[1]
        valid = (places >= 0) & ~is_label(kinds, ignored).flatten()
        bins = (places * self.num_classes + kinds.flatten())[valid]
        counts = torch.bincount(bins, minlength=clusters * self.num_classes).view(clusters, self.num_classes)
        filled = counts.any(1)  # [S]
        majority = (counts * self.num_classes - torch.arange(self.num_classes, device=ids.device)).argmax(1)
        members = torch.where(valid & (kinds.flatten() == majority[places]), places, -1)
        prototypes = kernels.segment_mean(rows, members, clusters)
        images_of = first + torch.arange(clusters, device=ids.device) // (self.grid[0] * self.grid[1])
        row_of = torch.where(members < 0, -1, (filled.cumsum(0) - 1)[members])
        return BankRows(prototypes[filled], majority[filled], images_of[filled]), row_of.view(ids.shape)


def vote(neighbors: Tensor, bank_labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(labels [S], votes [S, K] float32) of neighbors [S, k], rows of the bank, nearest first; -1 has no vote.

    The label is that of `metricseg_kernels.knn_vote`: the most frequent, of several that of the nearest neighbor; -1
    without a vote.
    """
    kinds = torch.where(neighbors < 0, num_classes, bank_labels[neighbors.clamp(min=0)])  # [S, k]
    votes = torch.zeros(len(neighbors), num_classes + 1, device=neighbors.device)
    votes.scatter_add_(1, kinds, torch.ones_like(kinds, dtype=votes.dtype))
    votes[:, num_classes] = 0
    best = votes.gather(1, kinds) == votes.amax(1, keepdim=True)  # [S, k], neighbors of a most frequent class
    winner = kinds.gather(1, best.int().argmax(1, keepdim=True))[:, 0]
    return torch.where(winner == num_classes, -1, winner), votes[:, :num_classes]
