"""SegSort's loss of pixel embeddings [B, D, h, w] against the prototypes of segments."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

import metricseg_kernels as kernels
from metricseg.losses.base import LOSSES, Loss
from metricseg.losses.prototype_memory import UNUSED, PrototypeMemory
from metricseg.utils.labels import check_maps, checks_values, nearest
from metricseg_kernels.core.labels import IgnoreIndex, is_label, resolve_ignore_index

SUPERVISIONS = ("labels", "segments")
NO_REGION = -1  # in an oversegmentation map


@LOSSES.register("segsort")
class SegSortLoss(Loss):
    """Pixels against prototypes: those of the segments of this batch and those of the last batches.

    With v_i the embeddings at unit norm: each image is clustered by spherical k-means with location, clusters are split
    where the label changes, and the prototype mu_s of a segment is the direction of the sum of its v_i. With s_ij =
    concentration <v_i, mu_j>,

        supervision "labels":    l_i = softplus(LSE_Neg s_ij - LSE_Pos s_ij),
        supervision "segments":  l_i = LSE_j s_ij - s_i,own,

    Pos the prototypes of the label of pixel i but that of its own segment, or that one if there is no other, and Neg
    those of other labels. The loss is the mean over the pixels with a label; 0, still differentiable, if there is none.
    With "segments", which needs no labels, the map holds the regions of an oversegmentation of each image instead, and
    j takes all prototypes.

    In training mode the prototypes go into a `PrototypeMemory`, after the loss of their batch. They have no gradient
    there. Under torch.distributed each rank has its own. `reset()` empties it. All shapes are fixed, so on CUDA
    there is no synchronization.

    Args:
        dim: D, of the memory.
        concentration: > 0, the inverse temperature.
        memory: batches in the memory; 0 for none.
        capacity: most segments of a batch. Pixels of further segments take no part, with a warning on the CPU.
        grid: (rows, columns) of the blocks that k-means starts from.
        iterations: of k-means.
        location: whether k-means adds the location of a pixel to its embedding.
        supervision: see above.
        num_classes: labels (regions of an image) lie in [0, num_classes); None for 65536.
        ignore_index: label of pixels that take no part; None for no label. "auto" is 255, unless num_classes is more;
            of regions it is -1.
        loss_weight: factor of the result.
        loss_name: key under which a host logs the loss.
        backend: of the loss against prototypes: "reference", "cpu", "triton"; None for the first that can run.

    Raises ValueError for an argument out of range; what a kernel takes is checked at the first call.

    Source: Hwang et al., SegSort: Segmentation by Discriminative Sorting of Segments, ICCV 2019.
    """

    takes_logits = False

    def __init__(
        self,
        dim: int = 32,
        concentration: float = 10.0,
        memory: int = 2,
        capacity: int = 2048,
        *,
        grid: tuple[int, int] = (5, 5),
        iterations: int = 10,
        location: bool = True,
        supervision: str = "labels",
        num_classes: int | None = None,
        ignore_index: IgnoreIndex = "auto",
        loss_weight: float = 1.0,
        loss_name: str = "loss_segsort",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("dim", dim, 1), ("memory", memory, 0), ("capacity", capacity, 1),
                                   ("iterations", iterations, 0)):  # fmt: skip
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; it takes an integer >= {least}")
        if not isinstance(concentration, int | float) or not 0 < concentration < float("inf"):
            raise ValueError(f"concentration is {concentration!r}; it takes a finite number > 0")
        if not isinstance(grid, tuple | list) or len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid):
            raise ValueError(f"grid is {grid!r}; it takes (rows, columns), two integers >= 1")
        if not isinstance(location, bool):
            raise ValueError(f"location is {location!r}; it takes True or False")
        if supervision not in SUPERVISIONS:
            raise ValueError(f"supervision is {supervision!r}; it takes one of {', '.join(SUPERVISIONS)}")
        self.dim, self.concentration, self.capacity = dim, float(concentration), capacity
        self.grid, self.iterations, self.location = (grid[0], grid[1]), iterations, location
        self.supervision, self.num_classes, self.ignore_index = supervision, num_classes, ignore_index
        regions = supervision == "segments" and ignore_index == "auto"
        self.ignored = NO_REGION if regions else resolve_ignore_index(ignore_index, num_classes)
        self.loss_weight, self.loss_name, self.backend = loss_weight, loss_name, backend
        self.memory, self.ring = memory, PrototypeMemory(memory, capacity, dim)
        self.silent = False

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, 0-d, of embeddings [B, D, h, w] under labels, or regions, [B, H, W].

        Labels are brought to (h, w) by taking the pixels that F.interpolate(mode="nearest") takes.

        Raises TypeError or ValueError for an argument of wrong type, dtype, shape or device, naming it and what it got.
        """
        check_maps("embeddings", embeddings, "[B, D, h, w]", "labels", labels)
        if self.memory and embeddings.shape[1] != self.dim:
            raise ValueError(f"embeddings have {embeddings.shape[1]} channels; the memory takes dim = {self.dim}")
        labels = nearest(labels, embeddings.shape[-2:])
        plain = "reference" if self.backend == "reference" else None
        clusters = kernels.spherical_kmeans(
            embeddings, grid=self.grid, iterations=self.iterations, location=self.location,
            valid=~is_label(labels, self.ignored), backend=plain,
        )  # fmt: skip
        ids, kinds, count = kernels.split_by_label(
            clusters, labels, capacity=self.capacity, num_classes=self.num_classes, ignore_index=self.ignored,
            backend=plain,
        )  # fmt: skip
        self.warn_if_dropped(count)
        pixels = torch.arange(labels.numel(), device=labels.device)
        rows = kernels.gather_pixels(embeddings, pixels, backend=plain)  # v, [N, D]
        ids = ids.flatten()
        prototypes = kernels.segment_mean(rows, ids, self.capacity, backend=plain)  # [capacity, D]
        if self.memory:
            earlier, earlier_kinds = self.ring.rows()
            # a copy, so that the update below leaves what backward reads
            against, kinds_of_all = torch.cat([prototypes, earlier.to(rows)]), torch.cat([kinds, earlier_kinds])
        else:
            against, kinds_of_all = prototypes, kinds
        own = labels.flatten()
        if self.supervision == "segments":  # each prototype is a label of its own
            numbers = torch.arange(len(against), device=rows.device)
            own, kinds_of_all = ids, torch.where(kinds_of_all >= 0, numbers, UNUSED)
        loss = kernels.prototype_nca_loss(
            rows, own, ids, against, kinds_of_all, concentration=self.concentration, ignore_index=None,
            backend=self.backend,
        )  # fmt: skip
        if self.training:
            self.ring.push(prototypes.detach(), kinds)
        return self.loss_weight * loss

    def reset(self) -> None:
        """Empty the memory."""
        self.ring.reset()

    def warn_if_dropped(self, count: Tensor) -> None:
        """Warn once if a batch has more segments than `capacity`."""
        if not self.silent and checks_values(count) and count > self.capacity:
            self.silent = True
            warnings.warn(
                f"a batch has {int(count)} segments; capacity is {self.capacity}, and the rest takes no part",
                stacklevel=3,
            )
