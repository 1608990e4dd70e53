"""Volumes, [B, K, d, h, w] and labels [B, D, H, W], on the backends that take them, against the specification in fp64;
and that against torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import focal_cases
import predict_cases
import pytest
import region_cases
import torch
import torch.nn.functional as F
from gradients import gradcheck
from predict_cases import make_maps, make_target, materialized
from threads import each_of
from tolerances import FLOOR_PARAMS, FLOORS
from torch import Tensor

import metricseg_kernels as mk

BACKENDS = ("reference", "cpu")
FOCAL = [pytest.param(case, id=case.id) for case in focal_cases.VOLUMES]
REGION = [pytest.param(case, id=case.id) for case in region_cases.VOLUMES]
LABELED = [p for p in REGION if not p.values[0].soft and "activation" not in p.values[0].options]
PREDICT = [pytest.param(case, id=name) for name, case in predict_cases.VOLUMES.items()]
NAMED = {case.id: case for case in focal_cases.VOLUMES}
INPUT, TARGET = torch.randn(2, 5, 3, 4, 6), torch.randint(5, (2, 6, 8, 12))


def noise_like(target: Tensor) -> Tensor:
    return torch.randn(target.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", FOCAL)
def test_focal(case: focal_cases.Case, dtype: torch.dtype, backend: str, device: str) -> None:
    against = focal_cases.against_reference
    given = (case, dtype, backend, device)
    loss, grad = against(mk.focal_loss, *given, weight=None, **focal_cases.options(case))
    assert loss.isfinite() and grad.isfinite().all()
    if case.labels == "ignored":
        assert loss == 0 and not grad.any()
    against(mk.focal_loss, *given, weight=None, reduction="none", **focal_cases.options(case), upstream_for=noise_like)
    others = {"ignore_index": case.ignore_index, "align_corners": case.align_corners}
    against(mk.sigmoid_focal_loss, *given, gamma=case.gamma, **others)
    if case.batch and 0 not in case.size:
        against(mk.ohem_cross_entropy, *given, thresh=0.3, min_kept=50, **others)
        against(mk.cross_entropy, *given, weight=None, pixel_weight=noise_like(torch.empty(case.batch, *case.size)).abs(),
                **others)  # fmt: skip


@pytest.mark.parametrize("name", ["volume-up2", "volume-aligned", "volume-identity", "volume-strided", "volume-down"])
def test_dense_targets_of_the_sigmoid(name: str, backend: str, device: str) -> None:
    case = NAMED[name]
    dense = torch.rand(case.batch, case.classes, *case.size).round(decimals=1)
    dense[:, :, 0, 0] = 255
    input, _, _ = focal_cases.make(case)
    found = []
    for given, to in ((backend, torch.float32), ("reference", torch.float64)):
        x = input.to(to, copy=True).requires_grad_()
        loss = mk.sigmoid_focal_loss(x, dense.to(to), ignore_index=255, reduction="none",
                                     align_corners=case.align_corners, backend=given)  # fmt: skip
        loss.square().sum().backward()
        assert x.grad is not None
        found.append((loss.detach().double(), x.grad.double()))
    for got, truth in zip(*found, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["volume-primes", "volume-aligned", "volume-identity", "volume-planes", "volume-down"])
def test_cross_entropy_is_torchs(name: str, backend: str, device: str) -> None:
    case = NAMED[name]
    input, target, weight = focal_cases.make(case, torch.float64)
    theirs_x, ours_x = (input.clone().requires_grad_() for _ in range(2))
    large = F.interpolate(theirs_x, target.shape[1:], mode="trilinear", align_corners=case.align_corners)
    theirs = F.cross_entropy(large, target.long(), weight, ignore_index=255, label_smoothing=case.label_smoothing)
    ours = mk.cross_entropy(ours_x, target[:, None], weight=weight, label_smoothing=case.label_smoothing,
                            align_corners=case.align_corners, backend=backend)  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    theirs.backward()
    ours.backward()
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", REGION)
def test_region(case: region_cases.Case, dtype: torch.dtype, backend: str, device: str) -> None:
    loss, grad = region_cases.against_reference(mk.region_loss, case, dtype, backend, device)
    if case.labels == "ignored" or not case.batch:
        assert loss == 0 and not grad.any()


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", LABELED)
def test_region_with_pixels(case: region_cases.Case, dtype: torch.dtype, backend: str, device: str) -> None:
    given = (case, dtype, backend, device)
    region_cases.against_reference(mk.cross_entropy_dice, *given, label_smoothing=0.1, lambda_ce=0.7)
    region_cases.against_reference(mk.focal_dice, *given, gamma=1.5)


def test_dice_written_out(backend: str, device: str) -> None:
    x, target = INPUT.double(), TARGET
    p = F.interpolate(x, TARGET.shape[1:], mode="trilinear").softmax(1)
    y = F.one_hot(target, 5).movedim(-1, 1).double()
    for per_image in (False, True):
        axes = (2, 3, 4) if per_image else (0, 2, 3, 4)
        expected = 1 - ((2 * (p * y).sum(axes) + 1) / (p.sum(axes) + y.sum(axes) + 1)).mean()
        found = mk.region_loss(x, target, per_image=per_image, backend=backend)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", PREDICT)
def test_predictions(case: predict_cases.Case, dtype: torch.dtype, backend: str, device: str) -> None:
    maps = make_maps(case, dtype)
    p = materialized(case, [m.double() for m in maps])
    labels, confidence, entropy = mk.predict_labels(
        maps, case.size, **case.options(), return_confidence=True, return_entropy=True, backend=backend
    )
    assert labels.shape == confidence.shape == entropy.shape == (case.batch, *case.size)
    alone = mk.predict_labels(maps, case.size, **case.options(), backend=backend)
    if case.batch == 0:
        return
    floor = FLOORS[torch.float64 if dtype == torch.float64 else torch.float32]
    for found in (labels, alone):  # bf16 has equal logits
        assert torch.equal(found.long(), p.argmax(1)) or dtype != torch.float64
        assert p.amax(1).sub(p.gather(1, found.long()[:, None])[:, 0]).max() <= floor
    torch.testing.assert_close(confidence.double(), p.amax(1), rtol=0, atol=floor)
    torch.testing.assert_close(entropy.double(), -torch.xlogy(p, p).sum(1), rtol=0, atol=5 * floor)


@pytest.mark.parametrize("case", PREDICT)
def test_confusion_matrix(case: predict_cases.Case, backend: str, device: str) -> None:
    maps = make_maps(case)
    ignored = 255 if case.classes <= 255 else -1
    for target in (make_target(case, torch.uint8), make_target(case, torch.int32)):
        counts = mk.confusion_matrix(maps, target, ignore_index=ignored, **case.options(), backend=backend)
        labels = mk.predict_labels(maps, case.size, **case.options(), backend=backend)
        valid = target != ignored
        pairs = target[valid].long() * case.classes + labels[valid].long()
        assert torch.equal(counts.flatten(), pairs.bincount(minlength=case.classes**2))


def test_labels_of_any_stride(backend: str, device: str) -> None:
    """Labels with their axes in another order, and every second slice of a larger tensor."""
    expected = {f: f(INPUT, TARGET, backend=backend) for f in (mk.cross_entropy, mk.region_loss, mk.confusion_matrix)}
    wide = torch.full((2, 12, 8, 12), 77)
    wide[:, ::2] = TARGET
    for target in (wide[:, ::2], TARGET.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
        for f, value in expected.items():
            torch.testing.assert_close(f(INPUT, target, backend=backend), value, rtol=1e-6, atol=0)


def test_a_volume_of_one_slice_is_an_image(backend: str, device: str) -> None:
    image, labels = INPUT[:, :, 0], TARGET[:, 0]
    for f in (mk.cross_entropy, mk.focal_loss, mk.sigmoid_focal_loss, mk.region_loss, mk.focal_dice):
        found = f(image[:, :, None], labels[:, None], backend=backend)
        torch.testing.assert_close(found, f(image, labels, backend=backend), rtol=1e-6, atol=0)
    assert torch.equal(
        mk.predict_labels(image[:, :, None], (1, 8, 12), backend=backend)[:, 0],
        mk.predict_labels(image, (8, 12), backend=backend),
    )


@pytest.mark.parametrize("name", ["volume-up2", "volume-slices", "volume-planes", "volume-down", "volume-identity"])
def test_gradcheck(name: str, backend: str, device: str) -> None:
    case = NAMED[name]._replace(cells=(2, 2, 3), size={"volume-identity": (2, 2, 3)}.get(name, (3, 4, 5)), batch=1)
    input, target, _ = focal_cases.make(case, torch.float64)
    input.requires_grad_()
    for loss in (mk.focal_loss, mk.sigmoid_focal_loss, mk.region_loss, mk.cross_entropy_dice):
        gradcheck(lambda x, loss=loss: loss(x, target, backend=backend), input, backend, device)


@pytest.mark.parametrize("case", FOCAL)
def test_threads_change_no_bit(case: focal_cases.Case) -> None:
    input, target, _ = focal_cases.make(case)

    def results() -> list[Tensor]:
        found = [mk.predict_labels(input, case.size, backend="cpu")] if 0 not in (case.batch, *case.size) else []
        for loss in (mk.focal_loss, mk.sigmoid_focal_loss, mk.cross_entropy_dice):
            x = input.detach().requires_grad_()
            value = loss(x, target, ignore_index=case.ignore_index, backend="cpu")
            found += [value.detach(), *torch.autograd.grad(value, x)]
        return found

    alone, *others = [results() for _ in each_of(1, 2, 3, 7)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(alone, other, strict=True))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_gradient_has_the_inputs_memory_format(layout: str, backend: str, device: str) -> None:
    x = INPUT.contiguous(memory_format=torch.channels_last_3d) if layout == "nhwc" else INPUT.clone()
    x.requires_grad_()
    mk.cross_entropy(x, TARGET, backend=backend).backward()
    assert x.grad is not None and x.grad.stride() == x.stride()


def volume_step(loss: str, classes: int, cells: int, ratio: int) -> Callable[[], object]:
    input = torch.randn(1, classes, cells, cells, cells, requires_grad=True)
    target = torch.randint(classes, (1, *[ratio * cells] * 3), dtype=torch.uint8)
    function = getattr(mk, loss)
    return lambda: torch.autograd.grad(function(input, target, backend="cpu"), input)


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy_dice"])
def test_nothing_of_the_size_of_the_labels_exists(loss: str, fresh_processes) -> None:
    """The gradient of the logits, and a few planes of a thread; interpolated logits would take 50 MB."""
    assert fresh_processes.peak(volume_step, loss, 6, 32, 4) < 8 * 2**20


@pytest.mark.parametrize("loss", [mk.cross_entropy, mk.focal_loss, mk.region_loss, mk.cross_entropy_dice])
def test_compile_takes_volumes_whole(loss: Callable[..., Tensor]) -> None:
    found = []
    for step in (loss, torch.compile(loss, fullgraph=True)):
        x = INPUT.clone().requires_grad_()
        step(x, TARGET).backward()
        assert x.grad is not None
        found.append(x.grad)
    torch.testing.assert_close(*found)


def test_opcheck() -> None:
    x = INPUT.double().requires_grad_()
    torch.library.opcheck(
        torch.ops.metricseg.focal_loss_fwd.default,
        (x, TARGET, None, None, 2.0, 0.0, 255, False, True, True, True, "valid", "cpu"),
    )
    torch.library.opcheck(
        torch.ops.metricseg.region_fwd.default, (x, TARGET, None, 0.0, 0.0, 255, False, True, True, False, "cpu")
    )
    torch.library.opcheck(
        torch.ops.metricseg.predict_labels.default,
        ([INPUT], [False], [1.0], False, [6, 8, 12], torch.uint8, True, True, "cpu"),
    )


IMAGE = torch.randn(2, 5, 4, 6)
BAD = [
    (lambda: mk.cross_entropy(INPUT, TARGET[:, 0]), ValueError, r"target must be \[B, D, H, W\], got shape \(2, 8, 12\)"),
    (lambda: mk.focal_loss(INPUT[0, 0], TARGET), ValueError, r"input must be \[B, K, h, w\] or \[B, K, d, h, w\]"),
    (lambda: mk.cross_entropy(IMAGE, TARGET), ValueError, r"target must be class indices \[B, H, W\]"),
    (lambda: mk.cross_entropy(INPUT, F.one_hot(TARGET, 5).movedim(-1, 1)), ValueError,
     r"class indices \[B, D, H, W\].*write target.argmax\(1\)"),
    (lambda: mk.cross_entropy(INPUT, TARGET, pixel_weight=torch.ones(2, 8, 12)), ValueError,
     r"pixel_weight must be \[B, D, H, W\]"),
    (lambda: mk.cross_entropy(INPUT, TARGET + 1), ValueError, "5"),
    (lambda: mk.region_loss(INPUT, TARGET + 1), ValueError, "5"),
    (lambda: mk.cross_entropy_dice(INPUT, torch.rand(2, 5, 6, 8, 12)), ValueError, "target must be labels"),
    (lambda: mk.lovasz_loss(INPUT, TARGET), ValueError, r"input must be \[B, K, h, w\], got shape"),
    (lambda: mk.predict_labels(INPUT, (8, 12)), ValueError, r"size must be \(D, H, W\) for logits"),
    (lambda: mk.predict_labels(IMAGE, (6, 8, 12)), ValueError, r"size must be \(H, W\) for logits"),
    (lambda: mk.predict_labels([INPUT, IMAGE], (6, 8, 12)), ValueError, r"logits\[1\].*an image and a volume"),
    (lambda: mk.predict_labels(INPUT[:, :, :0], (6, 8, 12)), ValueError, "logits must have d, h, w >= 1"),
    (lambda: mk.confusion_matrix(INPUT, TARGET[:, 0]), ValueError, r"target must be \[B, D, H, W\]"),
    (lambda: mk.cross_entropy(INPUT, TARGET, backend="triton"), RuntimeError, "kernels take images, no volumes"),
    (lambda: mk.region_loss(INPUT, TARGET, backend="triton"), RuntimeError, "kernels take images, no volumes"),
    (lambda: mk.predict_labels(INPUT, (6, 8, 12), backend="cuda"), RuntimeError, "kernels take images, no volumes"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", BAD)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_monais_dice_loss_with_cross_entropy(backend: str, device: str) -> None:
    """MONAI's DiceCELoss on interpolated logits, labels [B, 1, D, H, W] as there."""
    losses = pytest.importorskip("monai.losses")
    theirs = losses.DiceCELoss(batch=True, to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0)
    x, y = (INPUT.double().requires_grad_() for _ in range(2))
    expected = theirs(F.interpolate(x, TARGET.shape[1:], mode="trilinear"), TARGET[:, None])
    found = mk.cross_entropy_dice(y, TARGET[:, None], backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    expected.backward()
    found.backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-9, atol=1e-14)


def test_sums_of_a_cell_under_many_labels() -> None:
    """fp32 of a cell under two million labels is at most twice as far off as that of F.interpolate."""
    input, size = torch.randn(1, 2, 1, 1, 1), (128, 128, 128)
    target = torch.randint(2, (1, *size), dtype=torch.uint8)
    x, plain = (input.clone().requires_grad_() for _ in range(2))
    mk.cross_entropy(x, target, reduction="sum", backend="cpu").backward()
    F.cross_entropy(F.interpolate(plain, size, mode="trilinear"), target.long(), reduction="sum").backward()
    truth = (
        math.prod(size) * input.double().softmax(1)
        - torch.stack([(target == k).sum() for k in (0, 1)])[None, :, None, None, None]
    )
    assert x.grad is not None and plain.grad is not None
    assert (x.grad - truth).norm() <= 2 * (plain.grad - truth).norm() + 2e-6 * truth.norm()
