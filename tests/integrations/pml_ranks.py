"""One process of two: `torchrun --nproc-per-node 2 tests/integrations/pml_ranks.py`.

DistributedLossWrapper around our losses, in every form, against the same wrapper around pytorch-metric-learning's own.
"""

import os
import sys
import warnings

import torch
import torch.distributed as dist
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper

from metricseg.integrations import pml

ROWS, DIM = 9, 5


def batch(seed):
    generator = torch.Generator().manual_seed(10 * seed + dist.get_rank())
    embeddings = torch.randn(ROWS, DIM, dtype=torch.float64, generator=generator).requires_grad_()
    return embeddings, torch.randint(0, 4, (ROWS,), generator=generator)


def call(form, loss):
    """Values and gradients of the steps of one form."""
    results = []
    wrapped = DistributedLossWrapper(
        theirs.CrossBatchMemory(loss, DIM, memory_size=45) if form.startswith("memory") else loss,
        efficient=form.startswith("efficient"),
    )
    for seed in range(5 if form.startswith("memory") else 1):
        (embeddings, labels), (ref_emb, ref_labels) = batch(seed), batch(seed + 100)
        options, inputs = {}, [embeddings]
        if form.endswith("references"):
            options, inputs = {"ref_emb": ref_emb, "ref_labels": ref_labels}, [embeddings, ref_emb]
        elif form.endswith("miner"):
            miner = DistributedMinerWrapper(MultiSimilarityMiner(), efficient=form.startswith("efficient"))
            options = {"indices_tuple": miner(embeddings, labels)}
        elif form.endswith("mask"):
            options = {"enqueue_mask": torch.arange(ROWS) % 3 == 0}
        value = wrapped(embeddings, labels, **options)
        results += [value, *torch.autograd.grad(value, inputs)]
    return results


def main():
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    for name in ("SupConLoss", "NTXentLoss", "ContrastiveLoss"):
        for form in (
            "all", "all references", "all miner", "efficient", "efficient references", "efficient miner", "memory",
            "memory mask",
        ):  # fmt: skip
            expected = call(form, getattr(theirs, name)())
            ours = call(form, getattr(pml, name)())
            for one, other in zip(ours, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13, msg=lambda m: f"{name}, {form}: {m}")  # noqa: B023
            if dist.get_rank() == 0:
                print(f"same: {name}, {form}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # a thread of torch.distributed that still runs can abort an interpreter that ends by itself
