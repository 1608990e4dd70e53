"""topk_similarity and knn_vote with an index of FAISS in the place of a bank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_retrieval import draw

import metricseg_kernels as mk

faiss = pytest.importorskip("faiss")
on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def index_of(bank: torch.Tensor, kind: str = "Flat", metric: int = faiss.METRIC_INNER_PRODUCT) -> Any:
    index = faiss.index_factory(bank.shape[1], kind, metric)
    index.train(bank.numpy())
    index.add(bank.numpy())
    return index


@on_devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_exact_index_agrees_with_the_bank(dtype: torch.dtype, device: str) -> None:
    queries, bank = draw(40, 3000, 17, torch.float32)
    queries = queries.to(dtype)
    values, rows = mk.topk_similarity(queries.to(device), index_of(bank), 15)
    expected, at = mk.topk_similarity(queries.float(), bank, 15)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and rows.dtype == torch.int64
    assert values.device.type == rows.device.type == device and torch.equal(rows.cpu(), at)
    torch.testing.assert_close(values.cpu().float(), expected)


def test_queries_of_any_strides_without_a_gradient() -> None:
    queries, bank = draw(5, 30, 4, torch.float32)
    index = index_of(bank)
    strided = queries.T.contiguous().T.requires_grad_()
    assert not mk.topk_similarity(strided, index, 3)[0].requires_grad
    assert torch.equal(mk.topk_similarity(strided, index, 3)[1], mk.topk_similarity(queries, index, 3)[1])
    assert mk.topk_similarity(queries[:0], index, 3)[1].shape == (0, 3)


def test_rows_that_are_not_found_are_infinitely_far() -> None:
    """Those beyond the rows of the index, and those of lists that an approximate one does not search."""
    queries, bank = draw(3, 200, 4, torch.float32)
    values, rows = mk.topk_similarity(queries, index_of(bank[:2]), 4)
    assert (rows[:, :2] >= 0).all() and (rows[:, 2:] == -1).all()
    assert values[:, :2].isfinite().all() and (values[:, 2:] == -torch.inf).all()
    index = index_of(bank, "IVF4,Flat")
    values, rows = mk.topk_similarity(queries, index, 200)
    assert 0 < (rows >= 0).sum() < 600 and torch.equal(rows < 0, values == -torch.inf)
    index.nprobe = 4
    assert torch.equal(mk.topk_similarity(queries, index, 9)[1], mk.topk_similarity(queries, bank, 9)[1])


@on_devices
def test_vote(device: str) -> None:
    """Rows without a vote leave fewer than k."""
    queries, bank = draw(50, 40, 3, torch.float32)
    labels = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(1))
    index, on = index_of(bank), (queries.to(device), labels.to(device))
    assert torch.equal(mk.knn_vote(on[0], index, on[1], k=7).cpu(), mk.knn_vote(queries, bank, labels, k=7))
    labels[::3], labels[1::9] = 255, -1
    rows = mk.topk_similarity(queries, bank, 7)[1]
    found = mk.knn_vote(on[0], index, labels.to(device), k=7).tolist()
    for vote, of in zip(found, labels[rows].tolist(), strict=True):
        voting = [label for label in of if label not in (255, -1)]
        assert vote == max(voting, key=voting.count, default=-1)  # of several the first, the nearest
    assert mk.knn_vote(on[0], index, torch.full((40,), 255, device=device)).max() == -1


@pytest.mark.filterwarnings("error:Dynamo does not know how to trace")
def test_compiled_code_calls_the_index() -> None:
    queries, bank = draw(4, 30, 4, torch.float32)
    index = index_of(bank)
    compiled = torch.compile(lambda q: mk.topk_similarity(2 * q, index, 3), backend="eager")
    assert torch.equal(compiled(queries)[1], mk.topk_similarity(queries, bank, 3)[1])


def test_bad_input() -> None:
    queries, bank = draw(3, 5, 2, torch.float32)
    labels, valid = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.bool)
    index, far = index_of(bank), index_of(bank, metric=faiss.METRIC_L2)
    renumbered = faiss.IndexIDMap(faiss.IndexFlatIP(2))
    renumbered.add_with_ids(bank.numpy(), torch.arange(7, 12).numpy())
    topk, vote = mk.topk_similarity, mk.knn_vote
    for call, error, message in (
        (lambda: topk(queries, bank.numpy(), 1), TypeError, r"bank must be a Tensor \[M, D\] or an index of FAISS, got nda"),
        (lambda: vote(queries, [1], labels), TypeError, r"bank must be a Tensor \[M, D\] or an index of FAISS, got list"),
        (lambda: topk(queries, far, 1), ValueError, "bank must be an index with METRIC_INNER_PRODUCT, got METRIC_L2"),
        (lambda: topk(queries[:, 1:], index, 1), ValueError, "bank must have the D of queries, 1, got 2"),
        (lambda: topk(queries, index, 0), ValueError, r"k must be in \[1, 1024\], got 0"),
        (lambda: topk(queries, index, 1, valid=valid), ValueError, "valid must be None for an index of FAISS: build it"),
        (lambda: topk(queries, index, 1, backend="cpu"), ValueError, "backend must be None for an index .* got 'cpu'"),
        (lambda: topk(queries, renumbered, 1), ValueError, "bank must number its 5 rows from 0, got row"),
        (lambda: vote(queries, index, labels[1:]), ValueError, "bank_labels must have one entry per row of bank, 5, got 4"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
