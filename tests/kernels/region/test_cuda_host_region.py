"""The CUDA kernels of the region family on the host: the tests of every backend, and what only a shim can show."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import cuda_host
import pytest
import test_region
import torch
from cuda_host.fixtures import *  # noqa: F403
from gradients import loss_and_grad
from region_cases import CASES, NAMED, Case, against_reference, make
from test_region import (  # noqa: F401
    FAMILY,
    test_a_mask_is_a_soft_target_of_one_class,
    test_all_reduce_sees_every_sum,
    test_formulas_written_out,
    test_ignored_pixels_may_hold_anything,
    test_images_without_valid_pixels_do_not_count,
    test_labels_are_one_hot_soft_targets,
)
from test_region_bad_input import test_bad_targets_that_may_not_be_looked_at_give_nan  # noqa: F401
from test_region_contract import (  # noqa: F401
    test_backward_twice_gives_the_same,
    test_forward_keeps_sums_alone,
    test_gradient_has_the_inputs_memory_format,
    test_loss_scaling_survives_half_precision,
)
from test_region_contract import test_margins_and_poison as check_margins
from tolerances import FLOORS

import metricseg_kernels as mk
from metricseg_kernels.core import checks
from metricseg_kernels.region import op

pytestmark = pytest.mark.slow

HALF = ("up4", "primes", "channels-last", "soft", "sigmoid-soft", "mask", "huge", "empty-batch-images")
GUARDED = ("primes", "images", "many-classes", "channels-last-identity", "strided", "soft-identity", "mask-soft",
           "empty-batch-images", "no-pixels")  # fmt: skip
TILED = [
    Case("tall", (70, 3), (140, 9), classes=3, weighted=True, options={"per_image": True}),
    Case("wide", (2, 90), (6, 397), classes=21),
    Case("wide-aligned", (3, 50), (5, 99), classes=40, options={"align_corners": True}),
    Case("wide-down", (3, 300), (5, 140), batch=1),
    Case("ratio-150", (2, 3), (4, 450), classes=2),
    Case("identity-wide", (3, 150), (3, 150), classes=20, layout="nhwc", options={"per_image": True}),
    Case("second-tile", (2, 4), (4, 32), classes=171, batch=1),  # takes two turns, alone
    Case("a-full-warp", (2, 3), (5, 7), classes=847, batch=1),
    Case("beyond-a-warp", (2, 3), (4, 6), classes=901, options={"per_image": True}),
    Case("soft-beyond-a-warp", (2, 3), (4, 6), classes=397, soft=True, options={"per_image": True}),
    Case("sigmoid-spans", (2, 3), (5, 7), classes=30, options={"activation": "sigmoid"}),
]


def labeled(case: Case) -> bool:
    return not case.soft and "activation" not in case.options


def hold(case: Case, dtype: torch.dtype, backend: str) -> None:
    test_region.test_region_loss(case, dtype, backend, "cpu")
    if labeled(case):
        against_reference(mk.focal_dice, case, dtype, backend, "cpu", label_smoothing=0.1, gamma=1.5)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_losses(case: Case, backend: str) -> None:
    hold(case, torch.float32, backend)
    if case.id in HALF:
        hold(case, torch.bfloat16, backend)
        hold(case, torch.float16, backend)
    if case.id in ("primes-aligned", "identity", "confident", "soft", "sigmoid"):
        hold(case, torch.float64, backend)


@pytest.mark.parametrize("name", GUARDED)
def test_margins_and_poison(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_margins(NAMED[name], backend, "cpu", monkeypatch)


@pytest.mark.parametrize("dtype", FLOORS, ids=str)
def test_every_case(dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in CASES:
        test_region.test_region_loss(case, dtype, backend, "cpu")
        if labeled(case):
            test_region.test_with_pixels(case, dtype, backend, "cpu")
        if dtype == torch.float32:
            with monkeypatch.context() as patch:
                check_margins(case, backend, "cpu", patch)


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("case", TILED, ids=lambda c: c.id)
def test_any_tiling(case: Case, multiprocessors: int, shim: ModuleType, backend: str) -> None:
    """Few blocks of many chunks of columns, or many blocks of one."""
    shim.configure(multiprocessors, cuda_host.SHARED, 0)
    hold(case, torch.float32, backend)


@pytest.mark.parametrize("case", [*TILED[1:4], TILED[8], TILED[9], NAMED["sigmoid-soft"]], ids=lambda c: c.id)
def test_order_of_threads_does_not_matter(case: Case, shim: ModuleType, backend: str) -> None:
    input, target, options = make(case)
    results = []
    for seed in (0, 1):
        shim.configure(1, cuda_host.SHARED, seed)
        results.append(loss_and_grad(mk.region_loss, input, target, backend=backend, **options))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def raw_sums(input: torch.Tensor, target: torch.Tensor, backend: str, softmax: bool, per_image: bool) -> op.Sums:
    """What the kernel leaves, as on a device: no exception."""
    inputs = op.Inputs(input, target, None, 0.0, 0.0, 255, False, softmax, softmax and target.dim() == 3)
    outputs = op._outputs(input, per_image)
    op.kernels(backend).region_fwd_kernel(inputs, *outputs)
    return outputs


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("classes", [5, 901])
def test_labels_out_of_range_are_counted(classes: int, softmax: bool, backend: str) -> None:
    input, target, _ = make(Case("up4", (2, 1), (4, 2), classes=classes))
    target[1, 2, 1], target[1, 3, 0] = -7, 10**12
    clean = torch.where((target >= 0) & (target < classes), target, 255)
    for per_image in (True, False):
        bad, good = (raw_sums(input, t, backend, softmax, per_image) for t in (target, clean))
        assert bad.totals[-1, 1:].tolist() == [2, 10**12] and not good.totals[:, 1:].any()
        assert not per_image or not bad.totals[0, 1:].any()
        assert torch.equal(bad.sums, good.sums) and torch.equal(bad.loss, good.loss)
        assert torch.equal(bad.totals[:, 0], good.totals[:, 0]) and good.totals[:, 0].sum() == (clean != 255).sum()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("soft", [False, True])
def test_infinite_and_nan_logits_at_label_size(activation: str, soft: bool, backend: str) -> None:
    """They reach their image, and the pixels that hold them."""
    input, target, _ = make(Case("identity", (6, 7), (6, 7), classes=4, labels="full", soft=soft))
    input[0, 1, 2] = -torch.inf
    found, expected = (
        loss_and_grad(mk.region_loss, input, target, activation=activation, per_image=True, backend=name)
        for name in (backend, "reference")
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    input[0, 2, 5, 1] = torch.nan
    sums = raw_sums(input, target, backend, activation == "softmax", True).sums
    assert sums[0, 2, 1].isnan() and sums[1].isfinite().all()


@pytest.mark.parametrize("soft", [False, True])
def test_large_sums_keep_their_digits(soft: bool, backend: str) -> None:
    """Each pixel has the same probability, so that roundings to one side would add up."""
    logits = torch.tensor([0.3, -0.4, 1.1])[None, :, None, None].expand(1, 3, 8, 16).contiguous()
    target = torch.ones(1, 512, 256, dtype=torch.uint8)
    if soft:
        target = torch.full((1, 3, 512, 256), 0.3)
    sums = raw_sums(logits, target, backend, True, False).sums[0]
    p, pixels = logits[0, :, 0, 0].double().softmax(0), 512 * 256
    y = torch.full((3,), 0.3).double() if soft else torch.tensor([0.0, 1.0, 0.0]).double()
    torch.testing.assert_close(sums, pixels * torch.stack([p * y, p, y], 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("gap", [6.0, 12.0, 20.0])
def test_a_confident_pixel_keeps_the_digits_of_its_gradient(gap: float, backend: str) -> None:
    """p_t near 1: every gradient to rounding, none from a difference of nearly equal numbers."""
    input = torch.tensor([gap, 0.0, 0.5])[None, :, None, None].contiguous()
    target, inputs_of = torch.zeros(1, 1, 1, dtype=torch.int64), [input, input.double()]
    for function in (mk.region_loss, mk.cross_entropy_dice, mk.focal_dice):
        (_, found), (_, exact) = (
            loss_and_grad(function, x, target, backend=b) for x, b in zip(inputs_of, (backend, "cpu"), strict=True)
        )
        torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    ("labels", "barriers"),
    [((12, 16), (0, 2, 3, 4)), ((3, 4), (0, 3, 4, 5))],
    ids=["through-shared-memory", "at-label-size"],
)
def test_a_lost_barrier_is_found(
    labels: tuple[int, int], barriers: tuple[int, ...], shim: ModuleType, backend: str
) -> None:
    """Barriers by their number in a block: the first publishes the tile, the last ones reduce the sums."""
    input, target, options = make(Case("lost", (3, 4), labels, classes=40))
    loss_and_grad(mk.region_loss, input, target, **options, backend=backend)
    for barrier in barriers:
        shim.lose_barrier(barrier)
        with pytest.raises(RuntimeError, match="race in shared memory: thread"):
            loss_and_grad(mk.region_loss, input, target, **options, backend=backend)


def test_launches_of_a_call(shim: ModuleType, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels alone: the formula of the loss takes operators of PyTorch."""
    monkeypatch.setattr(checks, "validates", lambda _: False)
    for classes, most in ((19, (2, 1)), (901, (3, 2))):
        x, target = torch.zeros(2, classes, 4, 8, requires_grad=True), torch.zeros(2, 16, 32, dtype=torch.int64)
        sums: list[Any] = []

        def forward(x=x, target=target, sums=sums) -> torch.Tensor:
            sums.append(mk.cross_entropy_dice(x, target, backend=backend))
            return sums[0]

        loss, launched = cuda_host.launches(shim, forward)
        _, back = cuda_host.launches(shim, lambda y=loss, x=x: torch.autograd.grad(y, x))
        counts = [sum("kernel" in name for name in names) for names in (launched, back)]
        assert counts[0] <= most[0] and counts[1] <= most[1], (launched, back)


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
for K, h, w, H, W, ac, dtype in [(3, 3, 5, 12, 20, 0, "f4"), (21, 4, 3, 7, 11, 1, "f4"), (45, 2, 2, 2, 2, 0, "f2"),
                                 (5, 6, 9, 4, 3, 0, "f8"), (150, 2, 3, 8, 12, 0, "f4"), (901, 2, 2, 3, 4, 0, "f4"),
                                 (2, 2, 2, 3, 300, 0, "u2"), (1, 3, 2, 40, 5, 0, "f4"), (131, 2, 2, 3, 3, 0, "f8")]:
    acc = "f8" if dtype == "f8" else "f4"
    x = rng.standard_normal((2, K, h, w)).astype(dtype) if dtype != "u2" else np.full((2, K, h, w), 0x3f80, "u2")
    labels = rng.integers(0, K, (2, H, W)).astype("i4")
    labels[0, 0, 0], labels[0, 1, 1] = 255, 10**6
    soft = rng.random((2, K, H, W)).astype("f4")
    soft[:, 0, -1, -1] = 255
    weight, grad = np.ones(K, acc), np.empty_like(x)
    for target, softmax, pixel_loss in [(labels, True, True), (labels, False, False), (soft, True, False),
                                        (soft, False, False)]:
        S = 1 + K % 2
        inputs = (x, target, weight if pixel_loss else None, 1.5, 0.1, 255, bool(ac), softmax, pixel_loss)
        sums, loss, totals = np.empty((S, K, 3)), np.empty(()), np.empty((S, 3))
        m.region_fwd_kernel(*inputs, sums, loss, totals)
        bad = int(target is labels)
        assert np.isfinite(sums).all() and totals[0, 1] == bad and totals[0, 2] == 10**6 * bad, (K, totals)
        grad.fill(99)
        m.region_bwd_kernel(*inputs, rng.standard_normal((S, K, 3)), np.ones(()), grad)
        assert dtype == "u2" or np.abs(grad).max() < 99
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:
    cuda_host.run_sanitized("region", ASAN_SCRIPT)
