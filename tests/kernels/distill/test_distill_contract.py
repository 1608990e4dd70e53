"""The distill family beyond its numbers: autograd, compilers, memory, threads and vector widths."""

from __future__ import annotations

import itertools

import pytest
import torch
from distill_cases import CASE_PARAMS, CASES, KINDS, NAMED, Case, Maps, loss_and_grads, make, widen
from gradients import gradcheck
from guard import Guarded
from threads import each_of
from tolerances import FLOOR_PARAMS, FLOORS, assert_gradient, skip_unsupported
from widths import by_width, run_at

import metricseg_kernels as mk
from metricseg_kernels.core import backends
from metricseg_kernels.distill import op

FAMILY = "distill"
SMALL = [
    Case("a", (3, 2), (2, 4), (5, 7), classes=3, options={"temperature": 2.0}),
    Case("b", (3, 4), (2, 3), (2, 3), classes=2, options={"align_corners": True}),
    Case("c", (2, 3), (2, 3), (2, 3), classes=4, labels="none"),
]
needs_cpu = pytest.mark.skipif(
    backends.why_not("distill", "cpu", "cpu") is not None, reason=str(backends.why_not("distill", "cpu", "cpu"))
)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.id)
def test_gradcheck(case: Case, kind: str, reduction: str, backend: str, device: str) -> None:
    """Of both maps, together and each alone."""
    maps, options = make(case, torch.float64, device)
    options |= {"kind": kind, "reduction": reduction, "backend": backend}
    for learns in ((True, True), (True, False), (False, True)):
        leaves = [t.clone().requires_grad_(g) for t, g in zip(maps[:2], learns, strict=True)]
        gradcheck(lambda *x: mk.distillation_loss(*x, maps.target, **options), leaves, backend, device)


@pytest.mark.parametrize("kind", KINDS)
def test_gradgradcheck_of_the_reference(kind: str) -> None:
    for case in SMALL:
        maps, options = make(case, torch.float64)
        assert torch.autograd.gradgradcheck(
            lambda *x, t=maps.target, o=options: mk.distillation_loss(*x, t, **o, kind=kind, backend="reference"),
            [t.requires_grad_() for t in maps[:2]],
        )


@pytest.mark.kernels
def test_double_backward_says_what_to_do(backend: str, device: str) -> None:
    maps, _ = make(NAMED["same"], device=device)
    for reduction, i in itertools.product(("mean", "none"), (0, 1)):
        leaves = [t.clone().requires_grad_() for t in maps[:2]]
        for scale in (1.0, leaves[i].sum()):  # a gradient that is a constant, and one that depends on the map
            loss = (mk.distillation_loss(*leaves, maps.target, reduction=reduction, backend=backend) * scale).sum()
            with pytest.raises(RuntimeError, match="reference"):
                torch.autograd.grad(loss, leaves[i], create_graph=True)[0].sum().backward()


def test_who_gets_a_gradient(backend: str, device: str) -> None:
    for name in ("primes", "identity"):  # with a gradient from forward, and without
        maps, options = make(NAMED[name], device=device)
        for reduction in ("mean", "none"):
            options |= {"reduction": reduction, "backend": backend}
            _, *both = loss_and_grads(mk.distillation_loss, maps, torch.ones(()).to(device).expand(
                maps.target.shape) if reduction == "none" else None, **options)  # fmt: skip
            for i in (0, 1):
                leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate(maps[:2])]
                mk.distillation_loss(*leaves, maps.target, **options).sum().backward()
                assert leaves[1 - i].grad is None
                torch.testing.assert_close(leaves[i].grad, both[i], rtol=1e-6, atol=1e-9)
            assert not mk.distillation_loss(*maps, **options).requires_grad


@pytest.mark.kernels
def test_forward_keeps_a_gradient_or_the_maps(backend: str, device: str) -> None:
    """Nothing at label size; and without a gradient to the teacher, not the teacher, if forward made the student's."""
    for name in ("primes", "identity"):
        maps, _ = make(NAMED[name], device=device)
        for learns in (False, True):
            student, teacher = maps.student.clone().requires_grad_(), maps.teacher.clone().requires_grad_(learns)
            saved: list[torch.Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t):
                mk.distillation_loss(student, teacher, maps.target, backend=backend)
            keeps = teacher.data_ptr() in [t.data_ptr() for t in saved]
            assert keeps == (learns or name == "identity")
            assert all(t.numel() <= max(student.numel(), teacher.numel()) for t in saved)


def test_backward_twice_gives_the_same(backend: str, device: str) -> None:
    maps, options = make(NAMED["primes"], device=device)
    leaves = [t.requires_grad_() for t in maps[:2]]
    loss = mk.distillation_loss(*leaves, maps.target, **options, backend=backend)
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.kernels
def test_opcheck(layout: str, reduce: bool, labels: bool, backend: str, device: str) -> None:
    maps, _ = make(SMALL[0]._replace(layout=layout), torch.float64, device)
    leaves = [t.requires_grad_() for t in maps[:2]]
    target = maps.target if labels else None
    args = (*leaves, target, 5, 7, 2.0, "kl", 255, False, reduce, reduce, reduce, backend)
    torch.library.opcheck(torch.ops.metricseg.distill_fwd.default, args)
    grad = torch.ones(() if reduce else (len(maps.student), 5, 7), dtype=torch.float64, device=device)
    args = (grad, *(t.detach() for t in leaves), target, 5, 7, 2.0, "js", 255, False, backend)
    torch.library.opcheck(torch.ops.metricseg.distill_bwd.default, args)


def test_compile_without_a_graph_break(backend: str, device: str) -> None:
    for case in SMALL:
        maps, options = make(case, device=device)
        step = lambda a, b, t, o=options: mk.distillation_loss(2 * a, b, t, **o, backend=backend)  # noqa: E731
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        found, expected = (loss_and_grads(f, maps) for f in (compiled, step))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_autocast_takes_the_logits_as_they_are(backend: str, device: str) -> None:
    skip_unsupported(backend, torch.bfloat16)
    maps, _ = make(NAMED["channels-last"], device=device)
    head = torch.nn.Conv2d(8, 19, 1, device=device)
    with torch.autocast(device, torch.bfloat16):
        logits = head(torch.randn(2, 8, 6, 7, device=device))
        loss = mk.distillation_loss(logits, maps.teacher, maps.target, backend=backend)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert head.weight.grad.isfinite().all() and head.weight.grad.any()


@pytest.mark.parametrize("case", CASE_PARAMS)
@pytest.mark.kernels
def test_margins_and_poison(case: Case, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    guarded = Guarded(op.kernels(backend))
    maps, options = make(case, device=device)
    shape = (case.batch, *case.size)

    def call() -> list[torch.Tensor]:
        found = loss_and_grads(mk.distillation_loss, maps, **options, backend=backend)
        ones = torch.ones(shape, device=device)
        return found + loss_and_grads(
            mk.distillation_loss, maps, ones, reduction="none", kind="js", **options, backend=backend
        )

    plain = call()
    monkeypatch.setattr(op, "kernels", lambda _: guarded)
    watched = call()
    # once for the sum and each gradient that it does not leave, three times for the map
    assert guarded.calls == 5 + (case.size[0] * case.size[1] <= case.cells[0] * case.cells[1])
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


@needs_cpu
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_threads_change_no_bit(case: Case) -> None:
    found = []
    maps, options = make(case)
    for _ in each_of(1, 2, 3, 7):
        found.append([
            t for kind in KINDS
            for t in loss_and_grads(mk.distillation_loss, maps, kind=kind, **options, backend="cpu")
        ])  # fmt: skip
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_cpu
def test_threads_share_a_large_image() -> None:
    """Large enough for every thread to get a share, which the table's cases are not."""
    maps = Maps(torch.randn(1, 19, 32, 40), torch.randn(1, 19, 16, 50), torch.randint(0, 19, (1, 128, 160)))
    found = []
    for _ in each_of(1, 2, 5):
        found.append(loss_and_grads(mk.distillation_loss, maps, backend="cpu"))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.kernels
def test_gradients_have_the_maps_memory_format(backend: str, device: str) -> None:
    maps, options = make(NAMED["channels-last"], device=device)
    maps = maps._replace(teacher=maps.teacher.contiguous())
    _, student, teacher = loss_and_grads(mk.distillation_loss, maps, **options, backend=backend)
    assert student.is_contiguous(memory_format=torch.channels_last) and teacher.is_contiguous()


@pytest.mark.parametrize("dtype", [d for d in FLOOR_PARAMS if d.values[0] != torch.float64])
def test_loss_scaling_survives_half_precision(dtype: torch.dtype, backend: str, device: str) -> None:
    """A gradient of 1e-6 per cell, scaled by 65536 as a GradScaler does, must not pass through fp16 unscaled."""
    skip_unsupported(backend, dtype)
    maps, _ = make(Case("big", (16, 16), (8, 8), (64, 64), classes=4), dtype, device)
    scaled = lambda *x, **o: mk.distillation_loss(*x, **o) * 65536.0  # noqa: E731
    got = loss_and_grads(scaled, maps, backend=backend)
    exact = loss_and_grads(scaled, widen(maps), backend="reference")
    for ours, truth in zip(got[1:], exact[1:], strict=True):
        torch.testing.assert_close(
            ours.double().cpu(), truth, rtol=FLOORS[dtype] * 10, atol=truth.abs().max() * FLOORS[dtype]
        )


def compare_all() -> None:
    """Every case of the table in the vector width that METRICSEG_SIMD names."""
    for case, kind, dtype in itertools.product(CASES, KINDS, (torch.float32, torch.float64)):
        maps, options = make(case, dtype)
        call = {"kind": kind, **options}
        truth = loss_and_grads(mk.distillation_loss, widen(maps), **call, backend="reference")
        plain = loss_and_grads(mk.distillation_loss, maps, **call, backend="reference")
        got = loss_and_grads(mk.distillation_loss, maps, **call, backend="cpu")
        torch.testing.assert_close(got[0].double(), truth[0], rtol=1e-5, atol=1e-6)
        for i in (1, 2):
            assert_gradient(got[i], plain[i], truth[i], dtype)


@needs_cpu
@by_width
def test_narrower_vectors(width: str, fresh_processes: object) -> None:
    run_at(fresh_processes, width, "test_distill_contract", "compare_all")
