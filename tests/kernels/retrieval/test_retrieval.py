"""topk_similarity and knn_vote against a sort of each query's similarities, one at a time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from retrieval_calls import topk_step
from retrieval_cases import CASES
from threads import each_of
from tolerances import FLOOR_PARAMS, assert_as_good, skip_unsupported
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.core import backends

FAMILY = "retrieval"
CASE_PARAMS = [pytest.param(c, id="-".join(map(str, c))) for c in CASES]


def draw(queries: int, rows: int, depth: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    return tuple(torch.randn(n, depth, generator=rng, dtype=torch.float64).to(dtype) for n in (queries, rows))


def sorted_one_by_one(queries: Tensor, bank: Tensor, k: int, valid: Tensor | None = None) -> tuple[list, list]:
    found: tuple[list, list] = [], []
    for query in queries:
        s = (bank @ query).tolist()
        order = sorted((-s[j], j) for j in range(len(s)) if valid is None or valid[j])[:k]
        found[0].append([-v for v, _ in order] + [-torch.inf] * (k - len(order)))
        found[1].append([j for _, j in order] + [-1] * (k - len(order)))
    return found


@pytest.mark.parametrize("case", CASE_PARAMS)
def test_values_and_indices(case: tuple[int, int, int, int], backend: str, device: str) -> None:
    *sizes, k = case
    queries, bank = draw(*sizes)
    values, indices = mk.topk_similarity(queries.to(device), bank.to(device), k, backend=backend)
    assert values.shape == indices.shape == (sizes[0], k) and values.dtype == torch.float64
    if sizes[0] > 100:
        queries, values, indices = queries[::97], values[::97], indices[::97]
    expected = sorted_one_by_one(queries, bank, k)
    assert indices.tolist() == expected[1]
    torch.testing.assert_close(values.cpu(), torch.tensor(expected[0], dtype=torch.float64).view(-1, k))


def test_equal_values_come_by_index(backend: str, device: str) -> None:
    """Wherever in a tile the copies of a row lie."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 19, generator=rng)
    bank = rows.repeat(700, 1).to(device)  # row j is rows[j % 7]
    queries = torch.randn(5, 19, generator=rng).to(device)
    values, indices = mk.topk_similarity(queries, bank, 20, backend=backend)
    best = (queries @ rows.to(device).T).argmax(1)
    assert torch.equal(indices, best[:, None] + 7 * torch.arange(20, device=device))
    assert (values == values[:, :1]).all()


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
def test_dtypes(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_unsupported(backend, dtype)
    queries, bank = (t.to(device) for t in draw(40, 300, 17, dtype))
    values, indices = mk.topk_similarity(queries, bank, 9, backend=backend)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    truth, _ = mk.topk_similarity(queries.double(), bank.double(), 9, backend="reference")
    plain = torch.topk(queries @ bank.T, 9)[0]
    assert_as_good(values, plain, truth, dtype)
    of_indices = (queries.double()[:, None] * bank.double()[indices]).sum(2)
    assert_as_good(of_indices, plain, truth, dtype)


def test_what_is_not_retrieved(backend: str, device: str) -> None:
    """Rows that are not valid, and those whose similarity is NaN or -inf; +inf comes first."""
    bank = torch.tensor([[1.0], [torch.nan], [3.0], [torch.inf], [-torch.inf], [2.0]], device=device)
    one = torch.ones(1, 1, device=device)
    valid = torch.tensor([True, True, False, True, True, True], device=device)
    values, indices = mk.topk_similarity(one, bank, 6, valid=valid, backend=backend)
    assert indices.tolist() == [[3, 5, 0, -1, -1, -1]]
    assert values.tolist() == [[torch.inf, 2.0, 1.0, -torch.inf, -torch.inf, -torch.inf]]
    assert (mk.topk_similarity(one * torch.nan, bank, 2, backend=backend)[1] == -1).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("k", [1, 4, 15])
def test_vote(k: int, dtype: torch.dtype, backend: str, device: str) -> None:
    queries, bank = draw(50, 40, 3)
    labels = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(1))
    labels[::7] = 255
    found = mk.knn_vote(queries.to(device), bank.to(device), labels.to(device, dtype), k=k, backend=backend)
    _, indices = sorted_one_by_one(queries, bank, k, labels != 255)
    for vote, neighbors in zip(found.tolist(), indices, strict=True):
        of = [int(labels[j]) for j in neighbors]
        counts = Counter(of)
        assert vote == next(label for label in of if counts[label] == max(counts.values()))


def test_a_query_without_neighbors_has_no_label(backend: str, device: str) -> None:
    queries, bank = (t.to(device) for t in draw(3, 2, 4))
    none = torch.full((2,), 255, device=device)
    assert mk.knn_vote(queries, bank, none, backend=backend).tolist() == [-1, -1, -1]
    assert mk.knn_vote(queries, bank[:0], none[:0], backend=backend).tolist() == [-1, -1, -1]
    one = torch.tensor([255, 4], device=device)
    assert mk.knn_vote(queries, bank, one, backend=backend).tolist() == [4, 4, 4]
    assert mk.knn_vote(queries, bank, one, ignore_index=None, k=1, backend=backend).max() == 255


def test_same_bits_with_any_number_of_threads(backend: str, device: str) -> None:
    queries, bank = (t.to(device) for t in draw(1030, 2100, 33, torch.float32))
    found = []
    for _ in each_of(1, 2, 3, backend=backend):
        found.append(mk.topk_similarity(queries, bank, 15, backend=backend))
    if backend != "reference":  # whose products come from the library
        assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def test_compile_and_opcheck(backend: str, device: str) -> None:
    queries, bank = (t.to(device) for t in draw(9, 20, 4))
    compiled = torch.compile(mk.topk_similarity, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(queries, bank, 3, backend=backend), mk.topk_similarity(queries, bank, 3), strict=True):
        torch.testing.assert_close(a, b)
    if backend != "reference":
        torch.library.opcheck(torch.ops.metricseg.topk_similarity.default, (queries, bank, None, 3, backend))


def test_no_gradient() -> None:
    queries, bank = draw(3, 5, 2)
    values, _ = mk.topk_similarity(queries.requires_grad_(), bank.requires_grad_(), 2)
    assert not values.requires_grad


@pytest.mark.skipif(backends.why_not("retrieval", "cpu", "cpu") is not None, reason="no CPU kernels")
def test_memory_of_a_call(fresh_processes) -> None:
    """A tile, not the matrix: 1,000 x 60,000 similarities would take 229 MiB."""
    assert fresh_processes.peak(topk_step, 1000, 60_000) < 12 * 2**20


def test_bad_input() -> None:
    queries, bank = draw(3, 5, 2)
    labels, valid = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.bool)
    topk, vote = mk.topk_similarity, mk.knn_vote
    for call, error, message in (
        (lambda: topk(queries[0], bank, 1), ValueError, r"queries must be \[Q, D\]"),
        (lambda: topk(queries.long(), bank, 1), TypeError, "queries must have dtype"),
        (lambda: topk(queries, bank.float(), 1), TypeError, "bank must have the dtype of queries, torch.float64"),
        (lambda: topk(queries, bank[:, 1:], 1), ValueError, "bank must have the D of queries, 2, got 1"),
        (lambda: topk(queries, bank, 0), ValueError, r"k must be in \[1, 1024\], got 0"),
        (lambda: topk(queries, bank, 2.0), TypeError, "k must be an int, got float"),
        (lambda: topk(queries, bank, 1, valid=valid[1:]), ValueError, "valid must have one entry per row of bank, 5, got 4"),
        (lambda: topk(queries, bank, 1, valid=labels), TypeError, "valid must have dtype bool"),
        (lambda: topk(queries, bank, 1, backend="gpu"), ValueError, "backend must be one of"),
        (lambda: vote(queries, bank, labels[1:]), ValueError, "bank_labels must have one entry per row of bank, 5, got 4"),
        (lambda: vote(queries, bank, labels.float()), TypeError, "bank_labels must have dtype"),
        (lambda: vote(queries, bank, labels, ignore_index="auto"), TypeError, "ignore_index must be an int or None"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
