"""The retrieval family against what people write instead: the k nearest rows of a bank, as SegSort looks segments up.

A result is checked by the sum of its values times fixed weights, against a sort of all similarities in fp64. FAISS has
its index for nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metricseg_kernels as mk
from benchmarks.harness import entry, machine, peers, shapes
from benchmarks.harness.race import Contestant
from benchmarks.harness.shapes import Bank
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

PHASES = ("forward",)


class RetrievalProblem:
    """Queries and a bank, both of unit norm."""

    def __init__(self, shape: Bank, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        rng = torch.Generator().manual_seed(0)
        self.queries, self.bank = (
            F.normalize(torch.randn(n, shape.channels, generator=rng)).to(device, getattr(torch, shape.dtype))
            for n in (shape.queries, shape.rows)
        )
        weights = torch.rand(shape.queries, shape.k, generator=rng)
        self.leaves: tuple[Tensor, ...] = (weights.to(device).requires_grad_(),)

    @functools.cached_property
    def index(self) -> Any:
        """The index of FAISS."""
        return peers.faiss_index(self.bank)

    def weighed(self, values: Tensor) -> Tensor:
        return (self.leaves[0] * values).sum(dtype=torch.float64)

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        total = self.weighed(mk.topk_similarity(self.queries.double(), self.bank.double(), self.shape.k,
                                                backend="reference")[0])  # fmt: skip
        return total.detach(), torch.autograd.grad(total, self.leaves)

    def least_bytes(self, phase: str) -> int:
        """Queries and bank read once, values and indices written."""
        return self.queries.nbytes + self.bank.nbytes + 12 * self.shape.queries * self.shape.k

    def least_exponentials(self) -> int:
        return 0

    def least_flops(self, phase: str) -> int:
        return 2 * self.shape.queries * self.shape.rows * self.shape.channels


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers, then our backends."""
    own = [name for name in getattr(FAMILIES["retrieval"], device) if name != "reference" or device == "cuda"]
    about = {name: {"ours": True, "missing": backends.why_not("retrieval", name, device)} for name in own}

    def entrant(name: str, values: Callable[[RetrievalProblem], Tensor], **kwargs: Any) -> Contestant:
        return Contestant(name, values, checked=lambda p: p.weighed(values(p)), **kwargs)

    on_host = "it runs on cpu tensors" if device == "cuda" else None
    return (
        entrant("matmul, topk", lambda p: (p.queries @ p.bank.T).topk(p.shape.k)[0]),
        entrant("faiss", lambda p: peers.faiss_search(p.index, p.queries, p.shape.k),
                missing=on_host or peers.why_missing("faiss")),
        *(entrant(f"metricseg {n}", lambda p, n=n: mk.topk_similarity(p.queries, p.bank, p.shape.k, backend=n)[0],
                  **about[n]) for n in own),
    )  # fmt: skip


def problems() -> Iterator[tuple[Bank, str, tuple[str, ...]]]:
    for shape in shapes.BANKS:
        yield shape, "topk", PHASES


def quick(shape: Bank, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return shape == shapes.BANKS[0]


run_race = functools.partial(entry.measure, RetrievalProblem, contestants)


def small_cases(backend: str, device: str) -> None:
    """Fewer rows than k, no row, rows that are not valid, a column slice."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        queries, bank = (torch.randn(n, 34, generator=rng).to(device, dtype)[:, ::2] for n in (19, 75))
        valid = torch.rand(75, generator=rng).to(device) < 0.1
        for rows, k in ((75, 9), (75, 30), (0, 3)):
            values, indices = mk.topk_similarity(queries, bank[:rows], k, valid=valid[:rows], backend=backend)
            assert bool((values.isinf() == (indices < 0)).all())
        print(f"{backend} retrieval {dtype}: done", flush=True)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"),
    list(entry.parameters(problems(), lambda _, loss: contestants(loss), quick)),
)
def test_retrieval(shape, loss, phase, name, phases, raced, enter) -> None:
    problem, results = raced((shape, loss), contestants(loss), name, functools.partial(run_race, shape, loss, phases))
    figures = entry.report(problem, contestants(loss), results, name, phase, machine.DEVICE)
    figures |= {"op": "retrieval", "shape": str(shape), "loss": loss, "dtype": shape.dtype, "series": None}
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
