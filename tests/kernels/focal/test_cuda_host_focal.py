"""The CUDA kernels on the host, one fiber per thread: the tests of every backend, and what only a shim can show."""

from __future__ import annotations

from types import ModuleType

import cuda_host
import pytest
import torch
from cuda_host.fixtures import *  # noqa: F403
from focal_cases import NAMED, Case, against_reference, loss_and_grad, make, options
from test_focal import *  # noqa: F403
from test_focal_bad_input import (  # noqa: F401
    test_a_label_of_probability_0,
    test_an_infinite_logit_reaches_as_far_as_in_interpolate,
    test_infinite_logits_that_are_right,
    test_minus_infinity_in_the_last_cells,
    test_non_finite_logits_give_nan_and_return,
)
from test_focal_contract import *  # noqa: F403
from tolerances import FLOOR_PARAMS

import metricseg_kernels as mk
from metricseg_kernels.core import checks
from metricseg_kernels.focal import op

pytestmark = pytest.mark.slow

TILED = [
    Case("tall", (70, 3), (140, 9), classes=3, weighted=True),
    Case("wide", (2, 90), (6, 397), classes=21, label_smoothing=0.1),
    Case("wide-aligned", (3, 50), (5, 99), classes=40, align_corners=True),
    Case("wide-down", (3, 300), (5, 140), classes=5),
    Case("ratio-150", (2, 3), (4, 450), classes=2),
    Case("identity-wide", (3, 150), (3, 150), classes=20, layout="nhwc"),
    Case("a-full-warp", (2, 3), (5, 7), classes=847, gamma=0.0),
    Case("beyond-a-warp", (3, 5), (6, 11), classes=901, weighted=True, label_smoothing=0.1, label_dtype=torch.uint8),
]


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("case", TILED, ids=lambda c: c.id)
def test_any_tiling(case: Case, multiprocessors: int, shim: ModuleType, backend: str) -> None:
    """Few blocks of many chunks of columns, or many blocks of one."""
    shim.configure(multiprocessors, cuda_host.SHARED, 0)
    against_reference(mk.focal_loss, case, torch.float32, backend, "cpu", weight=None, **options(case))
    against_reference(mk.sigmoid_focal_loss, case, torch.float32, backend, "cpu", gamma=1.5,
                      align_corners=case.align_corners)  # fmt: skip


@pytest.mark.parametrize("case", [*TILED[1:5], NAMED["ade"], NAMED["down-up"]],
                         ids=lambda c: c.id)  # fmt: skip
def test_order_of_threads_does_not_matter(case: Case, shim: ModuleType, backend: str) -> None:
    input, target, weight = make(case)
    results = []
    for seed in (0, 1):
        shim.configure(1, cuda_host.SHARED, seed)
        results.append(loss_and_grad(mk.focal_loss, input, target, weight=weight, backend=backend, **options(case)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("classes", [5, 901])
def test_labels_out_of_range_are_counted_and_poison_the_loss(classes: int, backend: str) -> None:
    """The raw kernel, as a device runs it: no exception, NaN at the pixel, nothing in the gradient."""
    input, target, _ = make(Case("up4", (4, 6), (16, 24), classes=classes))
    target[0, 3, 4], target[0, 5, 6] = 10**12, -7
    clean = target.clone()
    clean[0, 3, 4] = clean[0, 5, 6] = 255
    outputs = {}
    for name, labels in (("bad", target), ("clean", clean)):
        for loss in (torch.empty(()), torch.empty(1, 16, 24)):
            totals, grad = torch.empty(5, dtype=torch.float64), torch.empty_like(input)
            op.kernels(backend).focal_kernel(
                input, labels, None, None, None, 2.0, 0.0, 255, False, 0.0, False, loss, totals, None, None, grad
            )
            outputs[name, loss.dim()] = loss, totals, grad
    assert outputs["bad", 0][0].isnan() and outputs["clean", 0][0].isfinite()
    assert outputs["bad", 3][0].isnan().nonzero().tolist() == [[0, 3, 4], [0, 5, 6]]
    assert outputs["bad", 0][1].tolist()[3:] == [2, 10**12] and outputs["clean", 0][1].tolist()[3:] == [0, 0]
    assert torch.equal(outputs["bad", 0][2], outputs["clean", 0][2])


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
def test_infinite_and_nan_logits_at_label_size(dtype: torch.dtype, backend: str) -> None:
    input, target, _ = make(Case("identity", (6, 7), (6, 7), classes=4, labels="full"), dtype)
    input[0, 1, 2] = -torch.inf
    input[0, :, 4, 5] = -torch.inf
    input[0, 2, 5, 1] = torch.nan
    ours, theirs = (loss_and_grad(mk.cross_entropy, input, target, reduction="none", upstream=torch.ones(1, 6, 7),
                                  backend=name) for name in (backend, "reference"))  # fmt: skip
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)
    torch.testing.assert_close(ours[1], theirs[1], equal_nan=True, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "barriers"),
    [((12, 16), (0, 2, 3, 4, 5, 6)), ((3, 4), (0, 2))],
    ids=["through-shared-memory", "at-label-size"],
)
def test_a_lost_barrier_is_found(
    labels: tuple[int, int], barriers: tuple[int, ...], shim: ModuleType, backend: str
) -> None:
    """Barriers by their number in a block: the first publishes the tile, the last ones reduce the sums."""
    input, target, _ = make(Case("lost", (3, 4), labels, classes=5))
    loss_and_grad(mk.focal_loss, input, target, backend=backend)
    for barrier in barriers:
        shim.lose_barrier(barrier)
        with pytest.raises(RuntimeError, match="race in shared memory: thread"):
            loss_and_grad(mk.focal_loss, input, target, backend=backend)


def test_launches_of_a_small_call(shim: ModuleType, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "validates", lambda _: False)
    x, target = torch.zeros(2, 19, 32, 64, requires_grad=True), torch.zeros(2, 128, 256, dtype=torch.int64)
    for loss_fn, kwargs, most in (
        (mk.focal_loss, {}, 2), (mk.cross_entropy, {}, 2), (mk.ohem_cross_entropy, {"min_kept": 1000}, 4),
    ):  # fmt: skip
        loss, forward = cuda_host.launches(shim, lambda f=loss_fn, k=kwargs: f(x, target, backend=backend, **k))
        upstream = torch.ones_like(loss)
        _, back = cuda_host.launches(shim, lambda y=loss, u=upstream: torch.autograd.grad(y, x, u))
        assert len(forward) <= most and len(back) <= 2, (forward, back)


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
for K, h, w, H, W, ac, dtype in [(3, 3, 5, 12, 20, 0, "f4"), (21, 4, 3, 7, 11, 1, "f4"), (45, 2, 2, 2, 2, 0, "f2"),
                                 (5, 6, 9, 4, 3, 0, "f8"), (150, 2, 3, 8, 12, 0, "f4"), (901, 2, 2, 3, 4, 0, "f4"),
                                 (2, 2, 2, 3, 300, 0, "u2")]:
    acc = "f8" if dtype == "f8" else "f4"
    x = rng.standard_normal((1, K, h, w)).astype(dtype) if dtype != "u2" else np.full((1, K, h, w), 0x3f80, "u2")
    t = rng.integers(0, K, (1, H, W)).astype("i4")
    t[0, 0, 0], t[0, 1, 1] = 255, 10**6
    common = (float(rng.choice([0, 0.5, 2])), 0.1, 255, bool(ac), 0.0, True)
    divisor = np.empty((), acc)
    totals, argmax, grad = np.empty(5), np.empty((1, H, W), "i4"), np.empty_like(x)
    for loss, upstream in ((np.empty((), acc), None), (np.empty((1, H, W), acc), np.ones((1, H, W), acc))):
        m.focal_kernel(x, t, np.ones(K, acc), None, upstream, *common, loss, totals, divisor, argmax, grad)
        m.focal_kernel(x, t, None, np.zeros((), acc), None, *common, loss, totals, None, None, None)
        assert totals[3] == (K < 10**6) and totals[4] == 10**6
    loss, upstream = np.empty((1, K, H, W), acc), np.ones((1, K, H, W), acc)
    m.sigmoid_focal_kernel(x, t, upstream, 2.0, 0.25, 255, bool(ac), loss, totals, grad)
    m.sigmoid_focal_kernel(x, upstream, None, 2.0, 0.25, 255, bool(ac), np.empty((), acc), totals, grad)
    for n in (5000, 70000):
        values, result = rng.standard_normal(n).astype(acc), np.empty((), acc)
        m.kth_largest_kernel(values, 17, np.inf, result)
        assert result == np.sort(values)[::-1][17]
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:
    cuda_host.run_sanitized("focal", ASAN_SCRIPT)
