"""The CUDA kernels of the distill family on the host: the tests of every backend, and what only a shim can show."""

from __future__ import annotations

from types import ModuleType

import cuda_host
import pytest
import torch
from cuda_host.fixtures import *  # noqa: F403
from distill_cases import CASES, KINDS, NAMED, Case, loss_and_grads, make
from test_distill import (  # noqa: F401
    FAMILY,
    against_reference,
    test_a_class_of_probability_0,
    test_any_value_but_one_is_a_label,
    test_dtypes_may_differ,
    test_equal_maps_give_0,
    test_exchanged_maps,
    test_formulas_written_out,
    test_mean_divides_by_the_valid_pixels,
    test_nan_and_what_is_ignored,
)
from test_distill_contract import (  # noqa: F401
    test_backward_twice_gives_the_same,
    test_gradients_have_the_maps_memory_format,
    test_loss_scaling_survives_half_precision,
    test_who_gets_a_gradient,
)
from test_distill_contract import test_margins_and_poison as check_margins
from tolerances import FLOORS

import metricseg_kernels as mk

pytestmark = pytest.mark.slow

HALF = ("teacher-fine", "primes", "identity", "channels-last", "huge", "ade", "empty-batch")
GUARDED = ("teacher-coarse", "primes", "identity", "strided", "channels-last-identity", "many-classes", "ignored",
           "empty-batch", "no-pixels")  # fmt: skip
BEYOND = Case("beyond-a-warp", (2, 3), (3, 2), (3, 4), classes=643, ignore_index=0)
TILED = [
    Case("tall", (70, 3), (35, 9), (140, 9), classes=3),
    Case("wide", (2, 90), (3, 31), (6, 397), classes=21),
    Case("wide-aligned", (3, 50), (5, 99), (5, 99), classes=40, options={"align_corners": True}),
    Case("wide-down", (3, 300), (9, 200), (5, 140), batch=1),
    Case("ratio-150", (2, 3), (4, 450), (4, 450), classes=2),
    Case("identity-wide", (3, 150), (2, 70), (3, 150), classes=20, layout="nhwc"),
    Case("a-full-warp", (2, 3), (3, 2), (3, 5), classes=640, batch=1),
    BEYOND,
    Case("beyond-identity", (2, 3), (2, 3), (2, 3), classes=641, labels="none"),
]


@pytest.mark.parametrize("case", [*CASES, BEYOND], ids=lambda c: c.id)
def test_losses(case: Case, backend: str) -> None:
    for kind, reduction in zip(KINDS, ("mean", "none", "sum"), strict=True):
        against_reference(case, torch.float32, backend, "cpu", kind=kind, reduction=reduction)
    if case.id in HALF:
        against_reference(case, torch.bfloat16, backend, "cpu", kind="reverse_kl")
        against_reference(case, torch.float16, backend, "cpu", kind="js")
    if case.id in ("primes-aligned", "identity", "half-identity", "many-classes"):
        for kind in KINDS:
            against_reference(case, torch.float64, backend, "cpu", kind=kind)


@pytest.mark.parametrize("name", GUARDED)
def test_margins_and_poison(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_margins(NAMED[name], backend, "cpu", monkeypatch)


@pytest.mark.parametrize("dtype", FLOORS, ids=str)
def test_every_case(dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in [*CASES, BEYOND]:
        for kind in KINDS:
            for reduction in ("mean", "sum", "none"):
                against_reference(case, dtype, backend, "cpu", kind=kind, reduction=reduction)
        if dtype == torch.float32:
            with monkeypatch.context() as patch:
                check_margins(case, backend, "cpu", patch)


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("case", TILED, ids=lambda c: c.id)
def test_any_tiling(case: Case, multiprocessors: int, shim: ModuleType, backend: str) -> None:
    """Few blocks of many chunks of columns, or many blocks of one."""
    shim.configure(multiprocessors, cuda_host.SHARED, 0)
    against_reference(case, torch.float32, backend, "cpu", kind=KINDS[len(case.id) % 3])


@pytest.mark.parametrize("case", [*TILED[1:4], BEYOND], ids=lambda c: c.id)
def test_order_of_threads_does_not_matter(case: Case, shim: ModuleType, backend: str) -> None:
    maps, options = make(case)
    results = []
    for seed in (0, 1):
        shim.configure(1, cuda_host.SHARED, seed)
        results.append(loss_and_grads(mk.distillation_loss, maps, kind="js", backend=backend, **options))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_spans_give_what_one_walk_gives(backend: str) -> None:
    """Beyond a warp: with the classes past it at -inf in both maps, the loss and gradients of those before."""
    wide, _ = make(Case("spans", (3, 4), (3, 4), (3, 4), classes=131), torch.float64)
    cut = wide._replace(student=wide.student[:, :90], teacher=wide.teacher[:, :90])
    wide = wide._replace(student=wide.student.clone(), teacher=wide.teacher.clone())
    wide.student[:, 90:] = wide.teacher[:, 90:] = -torch.inf
    for kind in KINDS:
        options = {"kind": kind, "temperature": 2.0, "backend": backend}
        found, expected = (loss_and_grads(mk.distillation_loss, maps, **options) for maps in (wide, cut))
        torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=0)
        for a, b in zip(found[1:], expected[1:], strict=True):
            assert not a[:, 90:].any()
            torch.testing.assert_close(a[:, :90], b, rtol=1e-10, atol=1e-15)


def test_infinities_beyond_a_warp(backend: str) -> None:
    """NaN and what is ignored, and -inf for all classes, as in one walk."""
    maps, _ = make(BEYOND._replace(cells=(2, 3), others=(2, 3), size=(2, 3), labels="full"))
    maps.student[0, :, 1, 2] = -torch.inf
    maps.teacher[1, 640, 0, 0] = torch.nan
    target = maps.target.clone()
    target[0, 1, 2] = target[1, 0, 0] = 0
    for kind in KINDS:
        options = {"kind": kind, "ignore_index": 0, "backend": backend}
        shown = mk.distillation_loss(*maps, reduction="none", **options)
        assert shown.isnan().nonzero().tolist() == [[0, 1, 2], [1, 0, 0]]
        results = loss_and_grads(mk.distillation_loss, maps._replace(target=target), **options)
        assert all(t.isfinite().all() for t in results)


def test_all_classes_at_minus_infinity(backend: str) -> None:
    maps, _ = make(NAMED["identity"])
    maps.student[0, :, 1, 2] = -torch.inf
    for kind in KINDS:
        shown = mk.distillation_loss(*maps[:2], (9, 13), kind=kind, reduction="none", backend=backend)
        assert shown.isnan().nonzero().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_far_apart(kind: str, backend: str) -> None:
    """Probabilities that are subnormal or 0 in fp32, in either map and in both."""
    student = torch.tensor([0.0, -86.0, -88.0, -100.0, -104.0, -200.0, -1e30])[None, :, None, None].repeat(1, 1, 1, 2)
    teacher = student.clone()
    teacher[..., 1] = teacher[..., 1].roll(3, 1)
    maps = make(NAMED["identity"])[0]._replace(student=student, teacher=teacher, target=(1, 2))
    for m in (maps, maps._replace(student=teacher, teacher=student)):
        found = loss_and_grads(mk.distillation_loss, m, kind=kind, backend=backend)
        expected = loss_and_grads(mk.distillation_loss, m, kind=kind, backend="reference")
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "barriers"),
    [((12, 16), (0, 2, 3)), ((3, 4), (0,))],
    ids=["through-shared-memory", "at-label-size"],
)
def test_a_lost_barrier_is_found(
    size: tuple[int, int], barriers: tuple[int, ...], shim: ModuleType, backend: str
) -> None:
    """Barriers by their number in a block: the first publishes the tile."""
    maps, options = make(Case("lost", (3, 4), (2, 3), size, classes=40))
    loss_and_grads(mk.distillation_loss, maps, backend=backend, **options)
    for barrier in barriers:
        shim.lose_barrier(barrier)
        with pytest.raises(RuntimeError, match="race in shared memory: thread"):
            loss_and_grads(mk.distillation_loss, maps, backend=backend, **options)


def test_launches_of_a_call(shim: ModuleType, backend: str) -> None:
    """Kernels of (forward, backward): the walk and the sums; beyond a warp the softmaxes of pixels before."""
    for classes, cells, most in ((19, 4, (2, 0)), (19, 16, (2, 1)), (641, 4, (3, 0))):
        student, teacher = (torch.zeros(2, classes, cells, 32, requires_grad=g) for g in (True, False))
        loss, launched = cuda_host.launches(
            shim, lambda s=student, t=teacher: mk.distillation_loss(s, t, (16, 32), backend=backend)
        )
        _, back = cuda_host.launches(shim, lambda y=loss, x=student: torch.autograd.grad(y, x))
        counts = tuple(sum("kernel" in name for name in names) for names in (launched, back))
        assert counts == most, (launched, back)


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
for K, h, w, h2, w2, H, W, ac, dtype in [
    (3, 3, 5, 2, 7, 12, 20, 0, "f4"), (21, 4, 3, 7, 11, 7, 11, 1, "f4"), (45, 2, 2, 2, 2, 2, 2, 0, "f2"),
    (5, 6, 9, 8, 3, 4, 3, 0, "f8"), (150, 2, 3, 4, 6, 8, 12, 0, "f4"), (701, 2, 2, 3, 1, 3, 4, 0, "f4"),
    (2, 2, 2, 2, 100, 3, 300, 0, "u2"), (1, 3, 2, 1, 1, 40, 5, 0, "f4"), (131, 2, 2, 3, 3, 3, 3, 0, "f8"),
]:
    acc = "f8" if dtype == "f8" else "f4"
    def make(h, w):
        return np.full((2, K, h, w), 0x3f80, "u2") if dtype == "u2" else rng.standard_normal((2, K, h, w)).astype(dtype)
    x, y = make(h, w), make(h2, w2)
    labels = rng.integers(0, K + 1, (2, H, W)).astype("i4")
    labels[0, 0, 0] = 255
    grad, divisor, total, map = np.empty_like(x), np.empty((), acc), np.empty((), acc), np.empty((2, H, W), acc)
    for kind in range(3):
        for target in (labels, None):
            scalars = (H, W, 2.0, kind, 255, bool(ac))
            grad.fill(99)
            m.distill_kernel(x, y, target, None, *scalars, total, divisor, grad)
            assert np.isfinite(total) and divisor == 2 * H * W - (target is labels), (K, total, divisor)
            assert dtype == "u2" or np.abs(grad).max() < 99
            m.distill_kernel(x, y, target, rng.standard_normal((2, H, W)).astype(acc), *scalars, None, None, grad)
            m.distill_kernel(x, y, target, None, *scalars, map, None, None)
            assert np.isfinite(map).all() and (target is None or map[0, 0, 0] == 0)
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:
    cuda_host.run_sanitized("distill", ASAN_SCRIPT)
