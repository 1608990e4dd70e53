"""One process of several, and the same by one process: `torchrun --nproc-per-node W tests/ranks.py OUT`.

A small network in DistributedDataParallel; each rank has its share of the batch. Rank 0 writes what every case gave.
"""

import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from metricseg.losses import (
    ContrastiveLoss,
    DiceCELoss,
    DiceLoss,
    LovaszLoss,
    MarginContrastLoss,
    NTXentLoss,
    PixelContrastLoss,
    SupConLoss,
    TverskyLoss,
)
from metricseg.utils import distributed

BATCH, CLASSES, DIM = 4, 4, 6
PIXELS = {
    "negatives": lambda: PixelContrastLoss(sampling="all", gather="all"),
    "all": lambda: PixelContrastLoss(sampling="all", denominator="all", gather="all", loss_weight=0.3),
    "balanced": lambda: PixelContrastLoss(sampling="all", balance="classes", gather="all"),
    "margin": lambda: MarginContrastLoss(sampling="all", gather="all"),
    "margin nonzero": lambda: MarginContrastLoss(sampling="all", average="nonzero", power=1, margin=0.7, gather="all"),
    "sampled": lambda: PixelContrastLoss(max_samples=40, max_views=6, gather="all"),
    "sampled margin": lambda: MarginContrastLoss(sampling="random", max_samples=32, max_views=7, gather="all"),
    "memory": lambda: PixelContrastLoss(
        sampling="all", with_memory=True, memory_size=300, pixel_update_freq=64, proj_dim=DIM, num_classes=CLASSES,
        gather="all",
    ),
    "balanced memory": lambda: PixelContrastLoss(
        sampling="all", with_memory=True, memory_size=300, pixel_update_freq=64, proj_dim=DIM, num_classes=CLASSES,
        gather="all", balance="classes", denominator="all",
    ),
}  # fmt: skip
REGIONS = {  # of the network's output as logits
    "dice": lambda: DiceLoss(activation="sigmoid", gather="all"),
    "tversky": lambda: TverskyLoss(0.3, 0.8, 1.5, smooth=1.0, average="classes", label_smoothing=0.1, gather="all"),
    "lovasz": lambda: LovaszLoss(64, weight=torch.linspace(0.5, 1.5, DIM), gather="all"),
    "dice ce": lambda: DiceCELoss(0.5, 2.0, 0.1, weight=torch.linspace(0.5, 1.5, DIM), gather="all"),
}
EMBEDDINGS = {"supcon": SupConLoss, "ntxent": NTXentLoss, "contrastive": ContrastiveLoss}
LABELS = ("random", "one rank ignored", "all ignored", "one class")
CASES = [
    *((name, labels, torch.float64) for name in (*PIXELS, *REGIONS) for labels in LABELS),
    *(
        (name, form, torch.float64)
        for name in EMBEDDINGS
        for form in ("self", "references", "same labels", "one class")
    ),
    *((name, "random", torch.float32) for name in ("negatives", "all", "margin", "sampled")),
]


def network(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, DIM, 1)).to(dtype)


def batch(kind, dtype):
    """Images [4, 3, 8, 8], labels [4, 16, 16], predictions [4, 8, 8]."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, CLASSES, (BATCH, 16, 16), generator=generator)
    labels[:, :3] = 255
    if kind == "one rank ignored":
        labels[BATCH // 2 :] = 255
    elif kind == "all ignored":
        labels[:] = 255
    elif kind == "one class":
        labels[labels != 255] = 2
    return images, labels, torch.randint(0, CLASSES, (BATCH, 8, 8), generator=generator)


def embedding_loss(loss, net, images, form):
    embeddings = net(images).mean((2, 3))
    labels = images[:, 0, 0, 0].gt(0).long() * (form != "one class")
    if form in ("self", "one class"):
        return loss(embeddings, labels)
    return loss(
        embeddings, labels, None, net(images.flip(3)).mean((2, 3)), labels if form == "same labels" else 1 - labels
    )


def run(name, kind, dtype, part, net):
    """The loss of a rank's part of the batch."""
    if name in EMBEDDINGS:
        images, _, _ = batch("random", dtype)
        return embedding_loss(EMBEDDINGS[name](gather="all"), net, images[part], kind)
    if name in REGIONS:
        images, labels, _ = batch(kind, dtype)
        return REGIONS[name]()(net(images[part]), labels[part])
    loss, (images, labels, predictions) = PIXELS[name]().to(dtype), batch(kind, dtype)
    for _ in range(2 if "memory" in name else 1):  # a memory is empty at first
        value = loss(net(images[part]), labels[part], predictions[part], seed=7)
    return value


def main(out):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    part = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    results = {}
    for name, kind, dtype in CASES:
        net = DistributedDataParallel(network(dtype))
        value = run(name, kind, dtype, part, net)
        value.backward()
        values = [torch.empty_like(value) for _ in range(ranks)]
        dist.all_gather(values, value.detach())
        results[name, kind, dtype] = torch.stack(values), [p.grad for p in net.parameters()]
    try:
        distributed.gather_rows(torch.zeros(1 + rank, 2))
        raise AssertionError("unequal numbers of rows went unnoticed")
    except ValueError as error:
        assert f"equally many rows to be gathered, got {list(range(1, ranks + 1))}" in str(error)
    if rank == 0:
        torch.save(results, out)
    del net
    dist.barrier()  # rank 0 keeps the store that the others still use
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # a thread of torch.distributed that still runs can abort an interpreter that ends by itself
