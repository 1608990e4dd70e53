"""The distill family, every backend against the specification in fp64, and against torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from distill_cases import CASE_PARAMS, CASES, KINDS, NAMED, Case, Maps, loss_and_grads, make, widen
from tolerances import FLOOR_PARAMS, assert_as_good, assert_gradient, skip_unsupported

import metricseg_kernels as mk

FAMILY = "distill"


def against_reference(case: Case, dtype: torch.dtype, backend: str, device: str, **more) -> list[torch.Tensor]:
    """One call on the backend, in plain PyTorch, and in fp64; each held against the last."""
    skip_unsupported(backend, dtype)
    maps, options = make(case, dtype, device)
    options |= more
    upstream = None
    if options.get("reduction") == "none":
        upstream = torch.linspace(0.5, 1.5, case.batch * case.size[0] * case.size[1], device=device)
        upstream = upstream.view(case.batch, *case.size)
    truth = loss_and_grads(mk.distillation_loss, widen(maps), upstream, **options, backend="reference")
    plain = loss_and_grads(mk.distillation_loss, maps, upstream, **options, backend="reference")
    got = loss_and_grads(mk.distillation_loss, maps, upstream, **options, backend=backend)
    assert got[0].dtype == plain[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got[1].dtype == got[2].dtype == dtype
    assert_as_good(got[0], plain[0], truth[0], dtype)
    for ours, theirs, exact in zip(got[1:], plain[1:], truth[1:], strict=True):
        assert_gradient(ours, theirs, exact, dtype)
    assert all(t.isfinite().all() for t in got)
    if case.labels == "ignored" or not case.batch or 0 in case.size or case.classes == 1:
        assert not any(t.any() for t in got)
    return got


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASE_PARAMS)
def test_distillation_loss(case: Case, kind: str, dtype: torch.dtype, backend: str, device: str) -> None:
    against_reference(case, dtype, backend, device, kind=kind)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASE_PARAMS)
def test_reductions(case: Case, kind: str, reduction: str, backend: str, device: str) -> None:
    against_reference(case, torch.float32, backend, device, kind=kind, reduction=reduction)


@pytest.mark.parametrize("case", [c for c in CASES if c.batch and 0 not in c.size], ids=lambda c: c.id)
def test_kl_is_kl_div_of_interpolated_logits(case: Case, backend: str, device: str) -> None:
    """Loss, map and both gradients of torch's own functions, in fp64."""
    maps, options = make(case, torch.float64, device)
    temperature, align = options.get("temperature", 1.0), options.get("align_corners", False)

    def eager(student, teacher, target):
        valid = torch.ones(case.batch, *case.size, dtype=torch.bool, device=device)
        if isinstance(target, torch.Tensor):
            valid = target != case.ignore_index
        log_p, log_q = (
            F.log_softmax(F.interpolate(x, case.size, mode="bilinear", align_corners=align) / temperature, 1)
            for x in (student, teacher)
        )
        pixels = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
        return temperature**2 * torch.where(valid, pixels, 0).sum() / valid.sum().clamp(min=1)

    expected = loss_and_grads(eager, maps)
    found = loss_and_grads(mk.distillation_loss, maps, **options, backend=backend)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_formulas_written_out(backend: str, device: str) -> None:
    """Pixel by pixel, in Python numbers."""
    maps, _ = make(NAMED["primes"], torch.float64, device)
    p, q = (F.interpolate(x, (13, 37), mode="bilinear").div(2).softmax(1) for x in maps[:2])

    def kl(a, b):
        return sum(x * (x / y).log() for x, y in zip(a.tolist(), b, strict=True))

    for kind in KINDS:
        got = mk.distillation_loss(*maps, temperature=2.0, kind=kind, reduction="none", backend=backend)
        for at in ((0, 3, 5), (1, 12, 36), (1, 0, 0)):
            a, b = p[at[0], :, at[1], at[2]], q[at[0], :, at[1], at[2]]
            m = (a + b) / 2
            pixel = {"kl": kl(b, a), "reverse_kl": kl(a, b), "js": (kl(a, m) + kl(b, m)) / 2}[kind]
            expected = 4 * pixel if maps.target[at] != 255 else torch.zeros_like(pixel)
            torch.testing.assert_close(got[at], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["primes", "teacher-fine", "identity", "crossed"])
def test_exchanged_maps(name: str, backend: str, device: str) -> None:
    """kl with both maps exchanged is reverse_kl, gradients included; js is symmetric."""
    maps, options = make(NAMED[name], torch.float64, device)
    turned = Maps(maps.teacher, maps.student, maps.target)
    for kind, other in (("kl", "reverse_kl"), ("reverse_kl", "kl"), ("js", "js")):
        loss, student, teacher = loss_and_grads(mk.distillation_loss, maps, kind=kind, **options, backend=backend)
        found = loss_and_grads(mk.distillation_loss, turned, kind=other, **options, backend=backend)
        for a, b in zip(found, (loss, teacher, student), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["same", "primes", "identity", "down-same", "huge"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_maps_give_0(kind: str, name: str, backend: str, device: str) -> None:
    """The loss and both gradients are 0 to rounding. "kl" and "reverse_kl" are exactly 0 on the CPU."""
    maps, options = make(NAMED[name], device=device)
    maps = Maps(maps.student, maps.student.clone(), maps.target)
    for found in loss_and_grads(mk.distillation_loss, maps, kind=kind, **options, backend=backend):
        assert found.abs().max() <= 1e-6
        assert backend != "cpu" or kind == "js" or not found.any()


def test_any_value_but_one_is_a_label(backend: str, device: str) -> None:
    maps, _ = make(NAMED["primes"], device=device)
    whole = mk.distillation_loss(maps.student, maps.teacher, (13, 37), backend=backend)
    for value in (-5, 0, 19, 2**40):
        labels = torch.full_like(maps.target, value, dtype=torch.int64)
        assert mk.distillation_loss(maps.student, maps.teacher, labels, backend=backend) == whole
    labels = torch.full_like(maps.target, 255, dtype=torch.uint8)
    assert mk.distillation_loss(maps.student, maps.teacher, labels, backend=backend) == 0
    for ignored in (None, 511, -1):  # what uint8 does not hold is no label of it
        found = mk.distillation_loss(maps.student, maps.teacher, labels[:, None], ignore_index=ignored, backend=backend)
        assert found == whole


def test_mean_divides_by_the_valid_pixels(backend: str, device: str) -> None:
    maps, options = make(NAMED["teacher-coarse"], torch.float64, device)
    mean, total, map = (
        mk.distillation_loss(*maps, **options, reduction=r, backend=backend) for r in ("mean", "sum", "none")
    )
    valid = maps.target != 255
    assert not map[~valid].any() and (map[valid] > 0).all()
    torch.testing.assert_close(total, map.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(mean, total / valid.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [(9, 13), (36, 52)])
def test_a_class_of_probability_0(size: tuple[int, int], backend: str, device: str) -> None:
    """-inf in both maps: no share. In one of them: inf where the other's logarithm counts."""
    maps, _ = make(NAMED["identity"], device=device)
    both = [x.index_fill(1, torch.tensor([2], device=device), -torch.inf) for x in maps[:2]]
    kept = [x[:, [0, 1, 3, 4, 5, 6]] for x in maps[:2]]
    if size != (9, 13):  # an edge pixel has the weight 0, and 0 times inf is NaN
        target = torch.full((2, *size), 255, device=device)
        target[:, 4:-4, 4:-4] = 0
    else:
        target = maps.target
    for kind in KINDS:
        found = loss_and_grads(mk.distillation_loss, Maps(*both, target), kind=kind, backend=backend)
        expected = loss_and_grads(mk.distillation_loss, Maps(*kept, target), kind=kind, backend=backend)
        torch.testing.assert_close(found[0], expected[0])
        for a, b in zip(found[1:], expected[1:], strict=True):
            if size == (9, 13):
                assert not a[:, 2].any()
                torch.testing.assert_close(a[:, [0, 1, 3, 4, 5, 6]], b)
        alone = [Maps(both[0], maps.teacher, target), Maps(maps.student, both[1], target)]
        losses = [mk.distillation_loss(*m, kind=kind, backend=backend) for m in alone]
        assert [bool(x.isinf()) for x in losses] == [kind == "kl", kind == "reverse_kl"]
        assert not any(x.isnan() for x in losses)
    # kl has a gradient even there: T (p - q)
    (grad,) = torch.autograd.grad(
        mk.distillation_loss(x := both[0].clone().requires_grad_(), maps.teacher, (9, 13), reduction="sum", backend=backend), x
    )  # fmt: skip
    torch.testing.assert_close(grad, both[0].softmax(1) - maps.teacher.softmax(1))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_what_is_ignored(kind: str, backend: str, device: str) -> None:
    maps, _ = make(NAMED["identity"], device=device)
    maps.target[0, 2, 3] = maps.target[1, 5, 5] = 255
    expected = loss_and_grads(mk.distillation_loss, maps, kind=kind, backend=backend)
    maps.student[0, 1, 2, 3], maps.teacher[1, 0, 5, 5] = torch.nan, torch.inf
    found = loss_and_grads(mk.distillation_loss, maps, kind=kind, backend=backend)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    for at in ((0, 2, 3), (1, 5, 5)):  # in the student, in the teacher
        target = maps.target.clone()
        target[at] = 1
        assert mk.distillation_loss(maps.student, maps.teacher, target, kind=kind, backend=backend).isnan()
        shown = mk.distillation_loss(*maps[:2], target, kind=kind, reduction="none", backend=backend)
        assert shown.isnan().sum() == 1 and shown[at].isnan()


def test_dtypes_may_differ(backend: str, device: str) -> None:
    maps, _ = make(NAMED["primes"], device=device)
    mixed = Maps(maps.student.bfloat16(), maps.teacher, maps.target)
    found = loss_and_grads(mk.distillation_loss, mixed, backend=backend)
    same = loss_and_grads(mk.distillation_loss, Maps(mixed.student.float(), *mixed[1:]), backend=backend)
    assert [t.dtype for t in found] == [torch.float32, torch.bfloat16, torch.float32]
    torch.testing.assert_close(found[0], same[0])
    torch.testing.assert_close(found[1], same[1].bfloat16())
    torch.testing.assert_close(found[2], same[2])
