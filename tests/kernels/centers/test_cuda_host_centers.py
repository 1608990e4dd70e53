"""The CUDA kernels of the centers family on the host: tests of every backend, and what only a shim can show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import cuda_host
import pytest
import test_centers
import torch
from aten_launches import outermost
from centers_cases import JOBS, NAMED, Case, against_reference, double, learning, make, run
from cuda_host.fixtures import device, shim  # noqa: F401
from test_centers import (  # noqa: F401
    FAMILY,
    test_absent_classes,
    test_magnitudes_at_the_ends_of_fp16,
    test_pull_is_what_its_similarity_pass_gives,
)
from test_centers_bad_input import (  # noqa: F401
    test_a_bad_pixel_in_class_centers,
    test_an_ignored_label_that_is_a_class,
    test_label_255_is_out_of_range_where_it_is_not_ignored,
    test_label_out_of_range_where_nothing_is_checked,
    test_logits_of_minus_infinity_are_no_members,
    test_nothing_labelled_is_zero_with_zero_gradient,
    test_zero_norm_is_like_nothing,
)
from test_centers_bad_input import test_a_bad_pixel_keeps_to_itself as check_bad_pixel
from test_centers_contract import (  # noqa: F401
    OWN,
    SHARED,
    test_gradients_have_the_memory_format_of_their_inputs,
    test_loss_scaling_survives_half_precision,
)
from test_centers_contract import test_gradcheck as check_gradients
from test_centers_contract import test_margins_and_poison as check_margins
from tolerances import assert_as_good

import metricseg_kernels as mk
from metricseg_kernels.centers import cuda, op
from metricseg_kernels.core import checks

pytestmark = pytest.mark.slow

# more than a tile of pixels, of channels and of the sum, 16-byte vectors or not, and blocks of classes, by csrc/centers
TILES = Case("tiles", (1, 9, 16), 136, 37, label_dtype=torch.uint8)
LAST = Case("last", (2, 5, 7), 136, 35, "own", layout="nhwc", label_dtype=torch.int32)
ODD = Case("odd", (1, 8, 17), 37, 33)
BLOCKS = Case("blocks", (1, 3, 5), 9, 163)
BY_DTYPE = {
    torch.float64: (NAMED["eleven-classes"], NAMED["one-column"], NAMED["no-pixels-own"], NAMED["no-channels"]),
    torch.float32: (NAMED["primes"], NAMED["row-slice"], NAMED["channel-slice"], NAMED["no-images"], ODD),
    torch.bfloat16: (TILES, LAST, BLOCKS, NAMED["expanded"], NAMED["one-class"]),
    torch.float16: (NAMED["powers-of-two"], NAMED["channels-last-own"], NAMED["huge"]),
}
IN_TF32 = [NAMED["powers-of-two"], NAMED["channels-last-own"], NAMED["primes"], BLOCKS]


@pytest.fixture
def backend(shim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    return cuda_host.stand_in(monkeypatch, op, shim, cuda)


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    """Exact products of fp32 maps, as PyTorch has them if not told otherwise."""
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", BY_DTYPE, ids=str)
@pytest.mark.parametrize("name", ["pulled", "soft", "hard"])
def test_values_and_gradients(name: str, dtype: torch.dtype, backend: str) -> None:
    for case in BY_DTYPE[dtype]:
        outputs, grads = against_reference(name, case, dtype, backend, "cpu", shared=name != "pulled")
        assert all(t.isfinite().all() for t in outputs + grads)


@pytest.mark.parametrize("name", ["dot", "euclidean", "pull", "soft-area"])
def test_other_forms(name: str, backend: str) -> None:
    for case, dtype in ((NAMED["strided"], torch.float32), (LAST, torch.bfloat16)):
        against_reference(name, case, dtype, backend, "cpu")


@pytest.mark.parametrize("name", ["cosine", "soft"])
def test_tf32(name: str, backend: str) -> None:
    """fp32 maps with the mantissa of fp16: at most twice its error; and as good as fp32 if all factors have it."""
    for case in IN_TF32:
        inputs = make(case)
        (truth,), true_grads = run(JOBS[name], double(inputs), case, backend="reference")
        (plain,), plain_grads = run(JOBS[name], make(case, torch.float16), case, backend="reference")
        torch.set_float32_matmul_precision("high")
        (ours,), grads = run(JOBS[name], inputs, case, backend=backend)
        torch.set_float32_matmul_precision("highest")
        (same,), _ = run(JOBS[name], inputs, case, backend=backend)
        assert not torch.equal(ours, same)
        for got, simple, right in zip((ours, *grads), (plain, *plain_grads), (truth, *true_grads), strict=True):
            assert_as_good(got, simple, right, torch.float16)


def test_tf32_of_numbers_that_it_has(shim: ModuleType, backend: str) -> None:  # noqa: F811
    """Small integers: products and sums are exact. With the shared memory of sm_90, which one kernel needs."""
    shim.configure(2, 226 << 10, 0)
    for layout in ("nchw", "nhwc"):
        inputs = make(Case("integers", (1, 4, 12), 136, 33, layout=layout))
        inputs = inputs._replace(features=(8 * inputs.features).round(), centers=(8 * inputs.centers).round())
        results = []
        for exact in (True, False):
            torch.set_float32_matmul_precision("highest" if exact else "high")
            x, w = inputs.features.detach().requires_grad_(), inputs.centers.detach().requires_grad_()
            logits = mk.center_similarity(x, w, metric="dot", scale=1.0, backend=backend)
            upstream = (8 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))).round()
            results.append([logits.detach(), *torch.autograd.grad(logits, (x, w), upstream)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_little_shared_memory(shim: ModuleType, backend: str) -> None:  # noqa: F811
    """That of sm_86 and sm_89: fewer stages, and S and T apart."""
    shim.configure(2, 95 << 10, 0)
    against_reference("pulled", TILES, torch.bfloat16, backend, "cpu")


@pytest.mark.parametrize("name", ["pulled", "euclidean", "soft", "hard"])
def test_gradcheck(name: str, backend: str) -> None:
    check_gradients(name, OWN if name == "euclidean" else SHARED, backend, "cpu")


@pytest.mark.parametrize(
    "case, dtype", [(NAMED["one-column"], torch.float32), (NAMED["channels-last-own"], torch.bfloat16), (NAMED["row-slice"], torch.bfloat16)],
    ids=lambda x: getattr(x, "id", None),
)  # fmt: skip
def test_margins_and_poison(case: Case, dtype: torch.dtype, backend: str, monkeypatch) -> None:
    check_margins(case, dtype, backend, "cpu", monkeypatch)


def test_a_bad_pixel_keeps_to_itself(backend: str) -> None:
    for name, value in (("pulled", torch.nan), ("euclidean", torch.nan), ("cosine", torch.inf)):
        check_bad_pixel(name, "nchw", value, backend, "cpu")


def test_upstream_gradient_of_any_stride(backend: str) -> None:
    for make_upstream in (
        lambda t: torch.ones(()).expand(t.shape),
        lambda t: torch.rand((*t.shape[:-1], 3 * t.shape[-1]))[..., ::3],
        lambda t: torch.rand(t.shape).movedim(1, -1).contiguous().movedim(-1, 1),
    ):
        test_centers.test_upstream_gradient_of_any_stride(make_upstream, backend, "cpu")


def test_another_dtype_of_centers_and_logits(backend: str) -> None:
    test_centers.test_centers_and_logits_of_another_dtype(torch.bfloat16, backend, "cpu")


def test_order_of_threads_does_not_matter(shim: ModuleType, backend: str) -> None:  # noqa: F811
    """In whatever order blocks, warps and lanes run."""
    for name, case, dtype in (("pulled", TILES, torch.bfloat16), ("soft", BLOCKS, torch.float32), ("hard", ODD, torch.float32)):  # fmt: skip
        runs = []
        for seed in (0, 1):
            shim.configure(2, cuda_host.SHARED, seed)
            runs.append(run(JOBS[name], make(case, dtype), case, backend=backend))
        assert all(torch.equal(a, b) for a, b in zip(runs[0][0] + runs[0][1], runs[1][0] + runs[1][1], strict=True))


@pytest.mark.parametrize("barrier", [0, 1, 2, 3, 4])
def test_a_lost_barrier_is_found(barrier: int, shim: ModuleType, backend: str) -> None:  # noqa: F811
    """So the tests above show that none is missing."""
    case = NAMED["primes"]
    for name in ("cosine", "soft"):
        shim.lose_barrier(barrier)
        with pytest.raises(RuntimeError, match="race in shared memory: thread"):
            run(JOBS[name], make(case, torch.bfloat16), case, backend=backend)


@pytest.mark.parametrize("job, dtype, most", [
    ("pulled", torch.float32, (5, 5)), ("pulled", torch.bfloat16, (5, 4)), ("soft", torch.float32, (3, 4)),
    ("soft", torch.bfloat16, (3, 4)), ("hard", torch.float32, (5, 2)),
])  # fmt: skip
def test_launches_of_small_calls(
    job: str,
    dtype: torch.dtype,
    most: tuple[int, int],
    shim: ModuleType,  # noqa: F811
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kernels of ours and of ATen, forward and backward; no kernel runs."""
    monkeypatch.setattr(checks, "validates", lambda _: False)
    case = Case("small", (2, 32, 64), 256, 19)
    inputs = learning(make(case, dtype), JOBS[job].learn)
    counts = []

    def count(step: Callable[[], Any]) -> Any:
        shim.record(True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            out = step()
        operators = list(outermost([e for e in profile.events() if e.cpu_parent is None]))
        counts.append((operators, [launch[0] for launch in shim.recorded()]))
        shim.record(False)
        return out

    out = count(lambda: JOBS[job].call(inputs, case, backend=backend))
    outputs = [out] if isinstance(out, torch.Tensor) else list(out)
    leaves, upstream = [getattr(inputs, name) for name in JOBS[job].learn], list(map(torch.ones_like, outputs))
    count(lambda: torch.autograd.grad(outputs, leaves, upstream))
    assert [len(operators) + len(kernels) for operators, kernels in counts] == list(most), counts


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
def values(*shape, dtype):
    x = rng.standard_normal(shape)
    return (x.astype("f4").view("u4") >> 16).astype("u2") if dtype == "u2" else x.astype(dtype)
for B, C, h, w, K, dtype, acc in [(2, 5, 7, 11, 19, "f4", "f4"), (1, 136, 4, 40, 37, "u2", "f4"),
                                  (1, 8, 1, 1, 163, "f2", "f4"), (2, 33, 3, 7, 3, "f8", "f8"), (0, 3, 4, 4, 2, "f4", "f4"),
                                  (1, 0, 4, 4, 2, "f4", "f4"), (2, 24, 5, 6, 34, "u2", "f4"), (1, 9, 1, 130, 2, "u2", "f4")]:
    x = values(B, C, h, w, dtype=dtype)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    labels = rng.integers(-1, K + 1, (B, h, w))
    pixels = lambda: np.empty((B, h, w), acc)
    for exact in (True, False):
        for metric, map, groups in (("cosine", x, 1), ("euclidean", last, B)):
            weights, logits, grad = values(groups, K, C, dtype=acc), values(B, K, h, w, dtype=dtype), np.empty_like(map)
            bias, norms, target = (None, pixels(), pixels()) if metric == "cosine" else (values(groups, K, dtype=acc), None, None)
            some = labels if target is not None else None
            given = values(groups, K, C, dtype=dtype)
            m.fold_rows_fwd_kernel(given, metric, 2.0, 1e-12, weights, bias)
            m.fold_rows_bwd_kernel(weights, bias, given, metric, 2.0, 1e-12, np.empty_like(given))
            m.pixel_similarity_fwd_kernel(map, weights, bias, some, metric, 2.0, 255, 1e-12, exact, logits, target, norms)
            pull, stats = (None, None) if target is None else (np.empty((), acc), np.empty((B, 1 + K), acc))
            if target is not None:
                m.center_pull_fwd_kernel(target, labels, 2.0, 255, pull, stats)
            m.pixel_similarity_bwd_kernel(values(B, K, h, w, dtype=dtype), pull, stats, map, weights, some, norms, metric,
                                          2.0, 255, 1e-12, exact, logits, target, grad, np.empty_like(weights))
            centers, totals, present = values(B, K, C, dtype=dtype), np.empty((B, K), acc), np.empty((B, K), bool)
            members, kept = values(B, K, h, w, dtype=dtype), None if dtype == acc else np.empty((B, K, C), acc)
            m.soft_class_means_fwd_kernel(map, members, exact, 1e-6, True, centers, kept, totals, present)
            m.soft_class_means_bwd_kernel(centers, centers if kept is None else kept, totals, map, members, exact, grad,
                                          np.empty_like(members))
            m.hard_class_means_fwd_kernel(map, labels, 255, 1e-6, True, centers, totals, present)
            m.hard_class_means_bwd_kernel(centers, totals, labels, 255, grad)
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:  # noqa: F811
    cuda_host.run_sanitized("centers", ASAN_SCRIPT)
