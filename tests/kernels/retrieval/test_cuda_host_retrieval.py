"""The CUDA kernels of the retrieval family on the host: the tests of every backend, and what only a shim can show."""

from __future__ import annotations

from types import ModuleType

import cuda_host
import pytest
import torch
from cuda_host.fixtures import *  # noqa: F403
from test_retrieval import (  # noqa: F401
    FAMILY,
    draw,
    sorted_one_by_one,
    test_a_query_without_neighbors_has_no_label,
    test_dtypes,
    test_equal_values_come_by_index,
    test_what_is_not_retrieved,
)

import metricseg_kernels as mk

pytestmark = pytest.mark.slow

# (queries, rows of the bank, D, k), by csrc/retrieval/topk.cuh
CASES = [(1, 1, 1, 1), (7, 13, 5, 3), (3, 4, 2, 9), (5, 0, 3, 2), (0, 6, 3, 2), (4, 130, 0, 3), (67, 130, 18, 15),
         (3, 3000, 3, 5), (2, 1100, 5, 70), (2, 2100, 3, 40), (1, 290, 2, 256)]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_indices(case: tuple[int, int, int, int], backend: str) -> None:
    """A part and several, lists in shared memory and in global memory, of more entries than lanes."""
    *sizes, k = case
    queries, bank = draw(*sizes)
    values, indices = mk.topk_similarity(queries, bank, k, backend=backend)
    expected = sorted_one_by_one(queries, bank, k)
    assert indices.tolist() == expected[1]
    torch.testing.assert_close(values, torch.tensor(expected[0], dtype=torch.float64).view(-1, k))


@pytest.mark.parametrize("k", [20, 50])
def test_equal_values_over_parts(k: int, shim: ModuleType, backend: str) -> None:
    """In whatever order threads run: by index, among lists of several parts."""
    queries = torch.ones(3, 1)
    bank = torch.arange(2100.0).remainder(3)[:, None]
    for seed in (0, 1):
        shim.configure(2, cuda_host.SHARED, seed)
        values, indices = mk.topk_similarity(queries, bank, k, backend=backend)
        assert torch.equal(indices, (2 + 3 * torch.arange(k)).expand(3, k)) and (values == 2).all()


def test_strided_rows(backend: str) -> None:
    queries, bank = draw(9, 300, 20)
    valid = torch.arange(600) % 4 > 0
    got = mk.topk_similarity(queries.T.contiguous().T, bank.T.contiguous().T, 5, valid=valid[::2], backend=backend)
    expected = mk.topk_similarity(queries, bank, 5, valid=valid[::2], backend="reference")
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("barrier", [1, 2, 3])
def test_a_lost_barrier_is_found(barrier: int, shim: ModuleType, backend: str) -> None:
    """So the tests above show that none is missing."""
    shim.lose_barrier(barrier)
    with pytest.raises(RuntimeError, match="race in shared memory: thread"):
        mk.topk_similarity(*draw(9, 300, 20, torch.float32), 5, backend=backend)


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
for Q, M, D, k, dtype, acc in [(3, 5, 2, 9, "f4", "f4"), (65, 70, 17, 1, "f8", "f8"), (1, 2100, 3, 33, "f2", "f4"),
                               (1, 2100, 1, 4, "f4", "f4"), (2, 0, 3, 2, "f4", "f4"), (3, 9, 0, 2, "u2", "f4")]:
    queries, bank = (rng.standard_normal((n, D)).astype("f4").astype(dtype) for n in (Q, M))
    valid = rng.random(M) < 0.9
    values, indices = np.empty((Q, k), acc), np.empty((Q, k), "i8")
    for some, rows in ((None, bank), (valid, np.asfortranarray(bank))):
        m.topk_kernel(queries, rows, some, values, indices)
        count = min(k, M if some is None else some.sum())
        assert ((indices >= 0).sum(1) == count).all() and indices.max(initial=-1) < max(M, 1)
        assert (np.diff(values[:, :count]) <= 0).all()
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:
    cuda_host.run_sanitized("retrieval", ASAN_SCRIPT)
