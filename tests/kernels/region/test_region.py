"""The region family, every backend against the specification in fp64, and against its formula written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradients import loss_and_grad
from region_cases import CASE_PARAMS, LABELED, NAMED, Case, against_reference, make
from tolerances import FLOOR_PARAMS

import metricseg_kernels as mk

FAMILY = "region"


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", CASE_PARAMS)
def test_region_loss(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    loss, grad = against_reference(mk.region_loss, case, dtype, backend, device)
    if case.labels == "ignored" or not case.batch or 0 in case.size:
        assert loss == 0 and not grad.any()


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", LABELED)
def test_with_pixels(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    for smoothing in (0.0, 0.1):
        against_reference(mk.cross_entropy_dice, case, dtype, backend, device, label_smoothing=smoothing, lambda_ce=0.7)
        loss, grad = against_reference(
            mk.focal_dice, case, dtype, backend, device, label_smoothing=smoothing, gamma=1.5
        )
        if case.labels == "ignored" or not case.batch or 0 in case.size:
            assert loss == 0 and not grad.any()


@pytest.mark.parametrize("case", LABELED)
def test_terms_are_those_of_their_own_functions(case: Case, backend: str, device: str) -> None:
    """cross_entropy_dice and focal_dice against the sum of two calls, gradients included."""
    input, target, options = make(case, torch.float64, device)
    shared = {n: options[n] for n in ("weight", "ignore_index", "align_corners") if n in options}
    dice = {n: options[n] for n in ("smooth", "average", "per_image") if n in options}
    found = loss_and_grad(mk.cross_entropy_dice, input, target, lambda_ce=0.5, lambda_dice=2.0, label_smoothing=0.1,
                          **shared, **dice, backend=backend)  # fmt: skip
    expected = loss_and_grad(
        lambda x, t: 0.5 * mk.cross_entropy(x, t, label_smoothing=0.1, **shared, backend="reference")
        + 2 * mk.region_loss(x, t, **shared, **dice, backend="reference"), input, target,
    )  # fmt: skip
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    found = loss_and_grad(mk.focal_dice, input, target, lambda_focal=0.5, gamma=2.0, **shared, **dice, backend=backend)
    expected = loss_and_grad(
        lambda x, t: 0.5 * mk.focal_loss(x, t, gamma=2.0, **shared, backend="reference")
        + mk.region_loss(x, t, **shared, **dice, backend="reference"), input, target,
    )  # fmt: skip
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_formulas_written_out(backend: str, device: str) -> None:
    """Class by class, image by image, in loops over pixels that are chosen by their masks."""
    input, target, _ = make(NAMED["up4"], torch.float64, device)
    p = F.interpolate(input, target.shape[-2:], mode="bilinear").softmax(1)
    alpha, beta, s, weight = 0.3, 0.8, 0.5, torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64, device=device)
    for form in ("dice", "tversky", "jaccard"):
        for per_image in (False, True):
            rows = [(p[[b]], target[[b]]) for b in range(2)] if per_image else [(p, target)]
            losses = []
            for q, t in rows:
                scores = []
                for k in range(5):
                    of_k, elsewhere = q[:, k][t == k].sum(), q[:, k][(t != k) & (t != 255)].sum()
                    missed = (1 - q[:, k][t == k]).sum()
                    if form == "dice":
                        scores.append((2 * of_k + s) / (2 * of_k + elsewhere + missed + s))
                    if form == "tversky":
                        scores.append((of_k + s) / (of_k + alpha * elsewhere + beta * missed + s))
                    if form == "jaccard":
                        scores.append((of_k + s) / (of_k + elsewhere + missed + s))
                losses.append((weight * (1 - torch.stack(scores))).sum() / weight.sum())
            found = mk.region_loss(input, target, form=form, alpha=alpha, beta=beta, smooth=s, weight=weight,
                                   per_image=per_image, backend=backend)  # fmt: skip
            torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-12, atol=0)


def test_labels_are_one_hot_soft_targets(backend: str, device: str) -> None:
    for name in ("up4", "identity", "sigmoid"):
        case = NAMED[name]
        input, target, options = make(case, torch.float64, device)
        soft = F.one_hot(target.long().where(target != 255, 0), case.classes).movedim(-1, 1).double()
        soft[:, 0][target == 255] = 255
        found, expected = (loss_and_grad(mk.region_loss, input, t, **options, backend=backend) for t in (soft, target))
        torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-14)
        whole = soft.where(soft != 255, 0).long()  # integers, as of masks that overlap
        a = mk.region_loss(input, whole, **options | {"ignore_index": None}, backend=backend)
        b = mk.region_loss(input, whole.double(), **options | {"ignore_index": None}, backend=backend)
        assert a == b


def test_a_mask_is_a_soft_target_of_one_class(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICSEG_VALIDATE", "1")
    input, target, options = make(NAMED["mask"], torch.float64, device)
    found = [
        mk.region_loss(input, t, **options, backend=backend)
        for t in (target, target[:, None], target[:, None].double())
    ]
    assert found[0] == found[1] and torch.isclose(found[0], found[2], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"target holds 1 labels .* nor in \[0, 2\): for example 2"):
        mk.region_loss(input, target.index_put((torch.tensor(0), torch.tensor(0), torch.tensor(0)), torch.tensor(2)),
                       **options, backend=backend)  # fmt: skip


def test_forms_that_coincide(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["primes"], torch.float64, device)
    call = lambda **kw: mk.region_loss(input, target, backend=backend, **kw)  # noqa: E731
    torch.testing.assert_close(call(form="tversky", smooth=0.5), call(smooth=1.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(call(form="tversky", alpha=1.0, beta=1.0), call(form="jaccard"), rtol=1e-12, atol=0)


def test_images_without_valid_pixels_do_not_count(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["images"], torch.float64, device)
    target[1] = 255
    found = loss_and_grad(mk.region_loss, input, target, per_image=True, backend=backend)
    kept = loss_and_grad(mk.region_loss, input[::2], target[::2], per_image=True, backend=backend)
    torch.testing.assert_close(found[0], kept[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1][::2], kept[1])
    assert not found[1][1].any()


def test_ignored_pixels_may_hold_anything(backend: str, device: str) -> None:
    """A NaN or infinity under an ignored label leaves the loss alone."""
    input, target, _ = make(NAMED["identity"], device=device)
    target[0, 2, 3] = target[1, 5, 5] = 255
    expected = [mk.region_loss(input, target, activation=a, backend=backend) for a in ("softmax", "sigmoid")]
    input[0, 1, 2, 3], input[1, 0, 5, 5] = torch.nan, torch.inf
    found = [mk.region_loss(input, target, activation=a, backend=backend) for a in ("softmax", "sigmoid")]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    target[0, 2, 3] = 1
    assert mk.region_loss(input, target, backend=backend).isnan()


def test_all_reduce_sees_every_sum(backend: str, device: str) -> None:
    """Two halves of a batch, whose sums are added, equal the whole: loss and gradient."""
    input, target, _ = make(NAMED["up4"], torch.float64, device)
    target[0] = torch.where(target[0] > 2, 255, target[0])
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64, device=device)
    for function in (mk.region_loss, mk.cross_entropy_dice, mk.focal_dice):
        options = {"weight": weight, "backend": backend}
        others: list[torch.Tensor] = []

        def keep(sums: torch.Tensor, others=others) -> torch.Tensor:
            others.append(sums)
            return sums

        function(input[1:], target[1:], all_reduce=keep, **options)
        found = loss_and_grad(function, input[:1], target[:1], all_reduce=lambda v, o=others: v + o[0], **options)
        whole = loss_and_grad(function, input, target, **options)
        torch.testing.assert_close(found[0], whole[0])
        torch.testing.assert_close(found[1], whole[1][:1])
