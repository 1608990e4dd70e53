"""The CUDA kernels of the contrast family on the host: the tests of every backend, and what only a shim can show."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import cuda_host
import pytest
import torch
from contrast_cases import (
    CASES,
    FORMS,
    NAMED,
    Case,
    against_reference,
    call,
    learning,
    loss_and_grads,
    make,
    options,
)  # fmt: skip
from cuda_host.fixtures import device, shim  # noqa: F401
from test_contrast import (  # noqa: F401
    FAMILY,
    test_expanded_and_shared_incoming_gradients,
    test_labels_are_compared_never_addressed,
    test_rows_hardly_apart_pull_no_harder_than_others,
)
from test_contrast_contract import SMALL, test_gradcheck  # noqa: F401
from test_contrast_contract import test_margins_and_poison as check_margins
from test_contrast_weights import test_gradcheck_with_weights  # noqa: F401
from test_order import test_order_of_rows  # noqa: F401
from test_prototypes import test_dtypes, test_published_formula  # noqa: F401

from metricseg_kernels.contrast import cuda, op
from metricseg_kernels.core import checks

pytestmark = pytest.mark.slow

# by csrc/engines/row_pairs: several blocks and parts, whole rows of a full slice, rows in chunks, several slices
PARTS = Case("parts", 131, 9, columns=259, classes=3, labels="some", column_labels="some")
ALONE = Case("alone", 200, 5, classes=4, labels="some")
WIDE = {torch.float64: (65,), torch.float32: (128, 300), torch.bfloat16: (256, 530), torch.float16: (290,)}
BY_DTYPE = {
    torch.float64: ("primes", "ids-of-one-set", "cold-two-sets", "margins-power-1"),
    torch.float32: (
        "two-sets", "no-contrast", "no-channels", "ignored", "strided", "expanded", "huge", "duplicates-power-1",
        "weights-ids-of-two-sets", "weights-wide",
    ),
    torch.bfloat16: ("some-ignored", "no-anchors", "transposed", "weights-two-sets", "large"),
    torch.float16: ("two-sets-wide", "huge-unit", "weights", "margins"),
}  # fmt: skip


@pytest.fixture
def backend(shim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    return cuda_host.stand_in(monkeypatch, op, shim, cuda)


@pytest.fixture
def fast_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", BY_DTYPE, ids=str)
def test_loss_and_gradients(form: str, dtype: torch.dtype, backend: str) -> None:
    for name in BY_DTYPE[dtype]:
        against_reference(form, NAMED[name], dtype, backend, "cpu")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", BY_DTYPE, ids=str)
def test_every_case(form: str, dtype: torch.dtype, backend: str) -> None:
    for case in CASES:
        against_reference(form, case, dtype, backend, "cpu")


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_width_of_rows(dtype: torch.dtype, backend: str) -> None:
    for form, width in zip(("negatives", "margin"), WIDE[dtype], strict=False):
        against_reference(form, Case("wide", 21, width, columns=35, classes=2), dtype, backend, "cpu")


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_less_shared_memory(dtype: torch.dtype, shim: ModuleType, backend: str) -> None:  # noqa: F811
    """As devices have that are not for data centers."""
    shim.configure(2, 95 << 10, 0)
    test_width_of_rows(dtype, backend)
    against_reference("all", Case("whole", 20, 250 // dtype.itemsize), dtype, backend, "cpu")


@pytest.mark.parametrize("case", [PARTS, ALONE], ids=lambda c: c.id)
@pytest.mark.parametrize("form", FORMS)
def test_blocks_and_parts(form: str, case: Case, backend: str) -> None:
    against_reference(form, case, torch.float32, backend, "cpu")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [24, 200])
def test_tf32(form: str, width: int, backend: str, fast_products: None) -> None:
    """Products of values that tf32 holds are exact; its weights have 11 bits."""
    case = Case("tf32", 40, width, columns=70, classes=3)
    sets = make(case, torch.float64)
    sets = sets._replace(anchors=sets.anchors.bfloat16().float(), contrast=sets.contrast.bfloat16().float())
    kwargs = options(case, form)
    loss, grads = loss_and_grads(form, sets, **kwargs, backend=backend)
    doubles = sets._replace(anchors=sets.anchors.double(), contrast=sets.contrast.double())
    truth, true_grads = loss_and_grads(form, doubles, **kwargs, backend="reference")
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    for ours, exact in zip(grads, true_grads, strict=True):
        assert (ours - exact).norm() <= 2**-11 * exact.norm()


@pytest.mark.parametrize("name", ["some-ignored", "weights-ids-of-two-sets", "no-contrast", "no-channels"])
def test_margins_and_poison(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_margins(NAMED[name], backend, "cpu", monkeypatch)


@pytest.mark.parametrize("form", ["negatives", "margin"])
def test_order_of_threads_does_not_matter(form: str, shim: ModuleType, backend: str) -> None:  # noqa: F811
    """In whatever order blocks, warps and lanes run."""
    sets, runs = make(PARTS, torch.float16), []
    for seed in (0, 1):
        shim.configure(2, cuda_host.SHARED, seed)
        loss, grads = loss_and_grads(form, sets, **options(PARTS, form), backend=backend)
        runs.append((loss, *grads))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("barrier", range(1, 6))  # the first of a reduction orders it after the one before
def test_a_lost_barrier_is_found(barrier: int, shim: ModuleType, backend: str) -> None:  # noqa: F811
    """So the tests above show that none is missing."""
    shim.lose_barrier(barrier)
    with pytest.raises(RuntimeError, match="race in shared memory: thread"):
        loss_and_grads("all", make(PARTS), **options(PARTS, "all"), backend=backend)


@pytest.mark.parametrize("form, columns, most", [("negatives", None, (6, 5)), ("all", 4096, (6, 7)),
                                                 ("margin", None, (5, 5))])  # fmt: skip
def test_launches_of_small_calls(
    form: str,
    columns: int | None,
    most: tuple[int, int],
    shim: ModuleType,  # noqa: F811
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kernels of ours and of ATen, forward and backward, at ContrastiveSeg's size; no kernel runs."""
    monkeypatch.setattr(checks, "validates", lambda _: False)
    case = Case("small", 1024, 256, columns=columns, classes=19)
    sets = learning(make(case))
    loss, forward = cuda_host.launches(shim, lambda: call(form, sets, **options(case, form), backend=backend))
    leaves = [t for t in (sets.anchors, sets.contrast) if t is not None]
    upstream = torch.ones(())
    _, back = cuda_host.launches(shim, lambda: torch.autograd.grad(loss, leaves, upstream))
    assert len(forward) <= most[0] and len(back) <= most[1], (forward, back)


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
def values(*shape, dtype):
    x = rng.standard_normal(shape) / max(shape[-1], 1) ** 0.5
    return (x.astype("f4").view("u4") >> 16).astype("u2") if dtype == "u2" else x.astype(dtype)
def side(N, D, dtype, acc, with_ids, weighted):
    labels, ids = rng.integers(-1, 3, N), rng.integers(0, 9, N).astype("i4") if with_ids else None
    weights = rng.random(N).astype(acc) if weighted else None
    out = [np.empty(N, "i8"), np.empty(N, "i4"), *(None if v is None else np.empty(N, t)
                                                     for v, t in ((ids, "i4"), (weights, acc)))]
    m.sort_rows_kernel(labels, ids, weights, None, None, None, None, -1, *out, None, None, None, None, None)
    return [values(N, D, dtype=dtype), *out]
for A, M, D, dtype, acc, exact in [(7, None, 3, "f4", "f4", True), (130, None, 20, "u2", "f4", False),
                                   (5, 150, 300, "f2", "f4", False), (9, 70, 130, "f4", "f4", False),
                                   (140, 9, 70, "f8", "f8", True), (3, 0, 4, "f4", "f4", True),
                                   (0, 3, 4, "u2", "f4", True), (6, 6, 0, "f4", "f4", False)]:
    for form, (numbers, n, stats) in enumerate([((.3, 1., 0., 0.), 1, 5), ((.1, 1., 0., 0.), 1, 5),
                                                ((1., .2, 2., 1.), 2, 4), ((.1, 0., 0., 0.), 1, 4)]):
        weighted = form < 2 and A % 2 == 1
        x = side(A, D, dtype, acc, A == 7, weighted and M is None)
        y = [None] * 5 if M is None else side(M, D, dtype, acc, False, weighted)
        sides = [*x, None, *y, form, *numbers, exact]
        terms, counts, rows = (np.empty(shape, acc) for shape in ((n,), (A, n), (A, stats)))
        m.contrast_fwd_kernel(*sides, True, terms, counts, rows)
        m.contrast_fwd_kernel(*sides, False, np.empty((A, n), acc), counts, rows)
        grads = [None if v is None else np.empty_like(v) for v in (x[0], y[0])]
        m.contrast_bwd_kernel(np.ones(n, acc), rows, *sides, *grads)
        m.contrast_mean_kernel(terms, counts, None, n == 1, *(np.empty(s, t) for s, t in (((), acc), (n, "f8"), (n, acc))))
        assert np.isfinite(terms).all() and all(g is None or g.dtype == "u2" or np.isfinite(g).all() for g in grads)
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:  # noqa: F811
    cuda_host.run_sanitized("contrast", ASAN_SCRIPT)
