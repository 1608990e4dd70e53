"""The focal family, every backend against the specification in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from focal_cases import CASE_PARAMS, NAMED, Case, against_reference, make, options
from tolerances import FLOOR_PARAMS, assert_gradient
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.focal import op, reference

FAMILY = "focal"


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", CASE_PARAMS)
def test_focal_mean(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    loss, grad = against_reference(mk.focal_loss, case, dtype, backend, device, weight=None, **options(case))
    assert loss.isfinite() and grad.isfinite().all()
    if case.labels == "ignored":
        assert loss == 0 and not grad.any()


@pytest.mark.parametrize("case", CASE_PARAMS)
def test_focal_map(case: Case, backend: str, device: str) -> None:
    """reduction="none" with an upstream gradient per pixel."""
    rng = torch.Generator().manual_seed(1)
    against_reference(
        mk.focal_loss, case, torch.float32, backend, device, weight=None, reduction="none", **options(case),
        upstream_for=lambda t: torch.randn(t.shape, generator=rng, dtype=torch.float64).to(t.device),
    )  # fmt: skip


def test_every_class_of_the_full_ade20k(backend: str, device: str) -> None:
    case = Case("ade-full", (2, 3), (5, 7), classes=847, gamma=0.0)
    against_reference(mk.focal_loss, case, torch.float32, backend, device, weight=None, **options(case))


@pytest.mark.parametrize("make_upstream", [lambda t: torch.ones((), device=t.device).expand(t.shape),
                                           lambda t: torch.rand(t.shape, device=t.device).mT.contiguous().mT],
                         ids=["expanded", "transposed"])  # fmt: skip
def test_upstream_gradient_of_any_stride(make_upstream, backend: str, device: str) -> None:
    case = NAMED["up4"]
    input, target, _ = make(case, device=device)
    upstream = make_upstream(target)
    grads = [
        torch.autograd.grad(mk.focal_loss(x := input.clone().requires_grad_(), target, reduction="none", backend=b), x,
                            upstream)[0]
        for b in (backend, "reference")
    ]  # fmt: skip
    assert_gradient(grads[0], grads[1], grads[1], torch.float32)


@pytest.mark.parametrize("case", [NAMED[n] for n in ("up4", "primes", "identity", "ade", "ignored", "channels-last")],
                         ids=lambda c: c.id)  # fmt: skip
def test_cross_entropy_is_torchs(case: Case, backend: str, device: str) -> None:
    input, target, weight = make(case, device=device)

    def torchs(x: Tensor, reduction: str) -> Tensor:
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=case.align_corners)
        return F.cross_entropy(
            up, target.long(), weight, ignore_index=255, reduction=reduction, label_smoothing=case.label_smoothing
        )

    for reduction in ("mean", "sum", "none"):
        if case.labels == "ignored" and reduction == "mean":
            continue  # NaN there, 0 here
        theirs_x, ours_x = (input.clone().requires_grad_() for _ in range(2))
        theirs = torchs(theirs_x, reduction)
        ours = mk.cross_entropy(
            ours_x, target, weight=weight, label_smoothing=case.label_smoothing, reduction=reduction,
            align_corners=case.align_corners, backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)
        theirs.sum().backward()
        ours.sum().backward()
        torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", [NAMED[n] for n in ("up4", "primes-aligned", "identity", "down", "ade", "ignored",
                                                     "huge", "huge-gamma", "confident", "strided", "channels-last",
                                                     "one-cell", "ratio-33", "empty-batch", "no-pixels")],
                         ids=lambda c: c.id)  # fmt: skip
def test_sigmoid_focal_of_labels(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    against_reference(mk.sigmoid_focal_loss, case, dtype, backend, device, gamma=case.gamma,
                      ignore_index=case.ignore_index, align_corners=case.align_corners)  # fmt: skip


@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (0.5, -1.0), (0.0, 0.5)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sigmoid_focal_is_torchvisions(gamma: float, alpha: float, reduction: str, backend: str, device: str) -> None:
    ops = pytest.importorskip("torchvision.ops")
    input, _target, _ = make(NAMED["primes"], device=device)
    dense = torch.rand(1, 19, 13, 37, device=device).round(decimals=1)  # 0, 1 and soft targets
    theirs_x, ours_x = (input.clone().requires_grad_() for _ in range(2))
    up = F.interpolate(theirs_x, size=(13, 37), mode="bilinear", align_corners=False)
    theirs = ops.sigmoid_focal_loss(up, dense, alpha=alpha, gamma=gamma, reduction=reduction)
    ours = mk.sigmoid_focal_loss(ours_x, dense, alpha=alpha, gamma=gamma, reduction=reduction, backend=backend)
    torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=2e-6)
    upstream = torch.rand_like(theirs)
    theirs.backward(upstream)
    ours.backward(upstream)
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-5, atol=2e-6)


def test_labels_and_their_one_hot_map_agree(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["one-label"], device=device)
    one_hot = F.one_hot(target, 5).movedim(-1, 1).float()
    for reduction in ("mean", "sum", "none"):
        a = mk.sigmoid_focal_loss(input, target, reduction=reduction, backend=backend)
        b = mk.sigmoid_focal_loss(input, one_hot, reduction=reduction, backend=backend)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("thresh, min_kept", [(0.7, 10), (0.05, 100), (0.2, 0), (0.9, 10**6)])
def test_ohem_keeps_the_hard_pixels(thresh: float, min_kept: int, weighted: bool, backend: str, device: str) -> None:
    """Against the selection as it is usually written, with a sort."""
    input, target, _ = make(NAMED["up4"], device=device)
    weight = torch.rand(5, device=device) + 0.5 if weighted else None
    x = input.clone().requires_grad_()
    up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
    valid = target != 255
    ce = F.cross_entropy(up, target.long(), ignore_index=255, reduction="none", weight=weight)[valid]
    p = up.softmax(1).gather(1, target.long().clamp(max=4)[:, None])[:, 0][valid].detach()
    limit = max(p.sort().values[min_kept].item() if min_kept < len(p) else 2.0, thresh)
    expected = ce[p < limit].mean()
    ours_x = input.clone().requires_grad_()
    ours = mk.ohem_cross_entropy(ours_x, target, thresh=thresh, min_kept=min_kept, weight=weight, backend=backend)
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=2e-6)
    expected.backward()
    ours.backward()
    torch.testing.assert_close(ours_x.grad, x.grad, rtol=1e-5, atol=1e-7)


def deeplab_ce(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """detectron2, projects/DeepLab/deeplab/loss.py: the mean of the largest losses, a share of all pixels."""
    losses = F.cross_entropy(logits, labels.long(), ignore_index=255, reduction="none").flatten()
    return losses.mean() if share == 1 else losses.topk(int(share * losses.numel())).values.mean()


@pytest.mark.parametrize("ignored", [0, 0.5, 0.9])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.6, 1.0])
def test_ohem_of_the_top_k_is_deeplabs(share: float, ignored: float, backend: str, device: str) -> None:
    """In fp64, with gradients. Where there are fewer valid pixels than k, ignored ones fill up the mean."""
    input, target, _ = make(NAMED["up4"]._replace(labels="full"), torch.float64, device)
    target.flatten()[: int(ignored * target.numel())] = 255
    x = input.clone().requires_grad_()
    expected = deeplab_ce(F.interpolate(x, size=target.shape[-2:], mode="bilinear"), target, share)
    ours_x = input.clone().requires_grad_()
    ours = mk.ohem_cross_entropy(ours_x, target, top_k_percent=share, backend=backend)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    expected.backward()
    ours.backward()
    torch.testing.assert_close(ours_x.grad, x.grad, rtol=1e-9, atol=1e-14)


def test_edge_cases_of_the_top_k(backend: str, device: str) -> None:
    """Less than one pixel is one, ties are kept, no valid pixel gives 0, and an infinite loss stays."""
    input, target, _ = make(NAMED["identity"]._replace(labels="full"), device=device)
    largest = F.cross_entropy(input, target, reduction="none").max()
    torch.testing.assert_close(mk.ohem_cross_entropy(input, target, top_k_percent=1e-9, backend=backend), largest)

    alike = torch.zeros_like(input).requires_grad_()
    loss = mk.ohem_cross_entropy(alike, target, top_k_percent=0.1, backend=backend)
    torch.testing.assert_close(loss, torch.full_like(loss, 7).log())
    loss.backward()
    whole = torch.zeros_like(input).requires_grad_()
    F.cross_entropy(whole, target).backward()
    torch.testing.assert_close(alike.grad, whole.grad)

    input.requires_grad_()
    loss = mk.ohem_cross_entropy(input, torch.full_like(target, 255), top_k_percent=0.1, backend=backend)
    loss.backward()
    assert loss == 0 and not input.grad.any()
    input.data[0, 3, 0, 0], target[0, 0, 0] = -torch.inf, 3
    assert mk.ohem_cross_entropy(input, target, top_k_percent=0.1, backend=backend) == torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("k", [0, 1, 499, 998, 999, 1000, 5000])
@pytest.mark.kernels
def test_kth_largest(k: int, dtype: torch.dtype, backend: str, device: str) -> None:
    values = torch.randn(1000, dtype=dtype, generator=torch.Generator().manual_seed(0)).to(device)
    values[::7] = -1.0
    values[::11] = values[3]
    values[5], values[6] = torch.inf, 0.0
    for most in (torch.inf, 0.5, -2.0):
        assert kth_largest(values, k, most, backend) == reference.kth_largest(values, k).clamp(max=most)


def kth_largest(values: Tensor, k: int, most: float, backend: str) -> Tensor:
    result = values.new_empty(())
    op.kernels(backend).kth_largest_kernel(values, k, most, result)
    return result


@pytest.mark.parametrize("size", [1, 65536, 65537])  # on CUDA, the most values that take the short way, and one more
@pytest.mark.kernels
def test_kth_largest_of_many(size: int, backend: str, device: str) -> None:
    """Values of one kind, as many as there are; a NaN is the largest, and stays."""
    noise = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(device)
    for values in (noise, torch.full_like(noise, 0.25), noise.sign() * 0.0):
        for k in {0, size // 3, size - 1}:
            assert kth_largest(values, k, torch.inf, backend) == reference.kth_largest(values, k)
    noise[size // 2] = torch.nan
    assert kth_largest(noise, 0, 0.5, backend).isnan()


@pytest.mark.parametrize("case", [NAMED[n] for n in ("up4", "primes", "identity", "ade", "down")],
                         ids=lambda c: c.id)  # fmt: skip
def test_stats_come_from_the_same_pass(case: Case, backend: str, device: str) -> None:
    input, target, weight = make(case, device=device)
    loss, stats = mk.focal_loss(input, target, weight=weight, align_corners=case.align_corners, return_stats=True,
                                backend=backend)  # fmt: skip
    up = reference.upsample(input, tuple(target.shape[-2:]), case.align_corners)
    valid = target != 255
    # two classes within rounding of each other may swap
    top = up.gather(1, stats.argmax.long()[:, None])[:, 0]
    assert (up.amax(1) - top).max() < 1e-5
    assert stats.argmax.dtype == torch.int32
    assert stats.valid == valid.sum()
    assert stats.correct == ((stats.argmax == target) & valid).sum()
    assert loss == mk.focal_loss(input, target, weight=weight, align_corners=case.align_corners, backend=backend)


def test_normalizers(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["up4"], device=device)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], device=device)
    call = lambda **kw: mk.focal_loss(input, target, weight=weight, backend=backend, **kw)  # noqa: E731
    total, valid = call(reduction="sum"), target != 255
    torch.testing.assert_close(call(), total / valid.sum())
    torch.testing.assert_close(call(normalizer="weight"), total / weight[target[valid].long()].sum())
    torch.testing.assert_close(call(avg_factor=17.0), total / 17)
    torch.testing.assert_close(call(avg_factor=torch.tensor(17.0, device=device)), total / 17)
