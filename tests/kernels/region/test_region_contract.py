"""The region family beyond its numbers: autograd, compilers, memory, threads and vector widths."""

from __future__ import annotations

import pytest
import torch
from gradients import gradcheck, loss_and_grad, widen
from guard import Guarded
from region_calls import LOGITS
from region_cases import CASE_PARAMS, CASES, LABELED, NAMED, Case, make
from threads import each_of
from tolerances import FLOOR_PARAMS, FLOORS, assert_as_good, assert_gradient, skip_unsupported
from widths import by_width, run_at

import metricseg_kernels as mk
from metricseg_kernels.core import backends
from metricseg_kernels.region import op

FAMILY = "region"

SMALL = [
    Case("a", (3, 2), (5, 7), classes=3, weighted=True, options={"form": "tversky", "exponent": 1.5, "alpha": 0.3}),
    Case("b", (3, 4), (2, 3), classes=2, options={"align_corners": True, "log": True, "per_image": True}),
    Case("c", (2, 3), (2, 3), classes=4, options={"form": "jaccard", "label_smoothing": 0.2, "smooth": 0.1}),
    Case("d", (2, 3), (5, 6), classes=3, soft=True),
    Case("e", (2, 3), (5, 6), classes=3, soft=True, options={"activation": "sigmoid"}),
    Case("f", (3, 2), (5, 7), classes=1, options={"activation": "sigmoid"}),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.id)
def test_gradcheck(case: Case, backend: str, device: str) -> None:
    input, target, options = make(case, torch.float64, device)
    input.requires_grad_()
    gradcheck(lambda x: mk.region_loss(x, target, **options, backend=backend), input, backend, device)
    if case.soft or "activation" in case.options:
        return
    weight = options.get("weight")
    for call in (
        lambda x: mk.cross_entropy_dice(x, target, weight=weight, label_smoothing=0.2, lambda_ce=0.3, backend=backend),
        lambda x: mk.focal_dice(x, target, gamma=1.3, weight=weight, backend=backend),
    ):
        gradcheck(call, input, backend, device)


def test_gradgradcheck_of_the_reference() -> None:
    for case in SMALL[:3]:
        input, target, options = make(case, torch.float64)
        assert torch.autograd.gradgradcheck(
            lambda x, t=target, o=options: mk.region_loss(x, t, **o, backend="reference"), input.requires_grad_()
        )


@pytest.mark.kernels
def test_double_backward_says_what_to_do(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["up4"], device=device)
    x = input.clone().requires_grad_()
    for scale in (1.0, x.sum()):  # a gradient that is a constant, and one that depends on x
        loss = mk.region_loss(x, target, backend=backend) * scale
        with pytest.raises(RuntimeError, match="reference"):
            torch.autograd.grad(loss, x, create_graph=True)[0].sum().backward()


def test_backward_twice_gives_the_same(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["up4"], device=device)
    input.requires_grad_()
    loss = mk.cross_entropy_dice(input, target, backend=backend)
    first, second = (torch.autograd.grad(loss, input, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.kernels
def test_opcheck(layout: str, per_image: bool, backend: str, device: str) -> None:
    input, target, options = make(NAMED["primes"]._replace(layout=layout), torch.float64, device)
    input.requires_grad_()
    args = (input, target, options["weight"], 2.0, 0.1, 255, False, True, True, per_image, backend)
    torch.library.opcheck(torch.ops.metricseg.region_fwd.default, args)


def test_compile_fullgraph(backend: str, device: str) -> None:
    for function, name in ((mk.region_loss, "images"), (mk.cross_entropy_dice, "primes"), (mk.region_loss, "soft")):
        input, target, options = make(NAMED[name], device=device)
        options = {n: v for n, v in options.items() if n in function.__kwdefaults__}
        step = lambda x, f=function, t=target, o=options: f(2 * x, t, **o, backend=backend)  # noqa: E731
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        found, expected = (loss_and_grad(lambda x, _, f=f: f(x), input, target) for f in (compiled, step))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", CASE_PARAMS)
@pytest.mark.kernels
def test_margins_and_poison(case: Case, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    guarded = Guarded(op.kernels(backend))
    input, target, options = make(case, device=device)

    def call() -> list[torch.Tensor]:
        found = [*loss_and_grad(mk.region_loss, input, target, **options, backend=backend)]
        if case.id in [c.id for c in LABELED]:
            found += loss_and_grad(mk.focal_dice, input, target, ignore_index=case.ignore_index, backend=backend)
        return found

    plain = call()
    monkeypatch.setattr(op, "kernels", lambda _: guarded)
    watched = call()
    assert guarded.calls == len(plain)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


@pytest.mark.kernels
def test_forward_keeps_sums_alone(backend: str, device: str) -> None:
    """Between the passes there are the inputs, and [S, K, 3] sums."""
    input, target, _ = make(NAMED["up4"], device=device)
    loss = mk.region_loss(input.requires_grad_(), target, backend=backend)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = mk.region_loss(input, target, per_image=True, backend=backend)
    assert loss.requires_grad
    assert all(t.numel() <= 2 * 5 * 3 for t in saved if t.data_ptr() not in (input.data_ptr(), target.data_ptr()))


def results(case: Case, backend: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    input, target, options = make(case, dtype)
    found = [*loss_and_grad(mk.region_loss, input, target, **options, backend=backend)]
    if not case.soft and "activation" not in case.options:
        kept = {"ignore_index": case.ignore_index, "weight": options.get("weight"), "label_smoothing": 0.1}
        found += loss_and_grad(mk.focal_dice, input, target, **kept, backend=backend)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_threads_change_no_bit(case: Case) -> None:
    if (reason := backends.why_not("region", "cpu", "cpu")) is not None:
        pytest.skip(reason)
    found = []
    for _ in each_of(1, 2, 3, 7):
        found.append(results(case, "cpu"))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_threads_share_a_large_image() -> None:
    """Large enough for every thread to get a share, which the table's cases are not."""
    if (reason := backends.why_not("region", "cpu", "cpu")) is not None:
        pytest.skip(reason)
    input, target = torch.randn(1, 19, 32, 40), torch.randint(0, 19, (1, 128, 160))
    found = []
    for _ in each_of(1, 2, 5):
        found += [loss_and_grad(f, input, target, backend="cpu") for f in (mk.region_loss, mk.cross_entropy_dice)]
    for i, pair in enumerate(found[2:]):
        assert all(torch.equal(a, b) for a, b in zip(found[i % 2], pair, strict=True))


@pytest.mark.kernels
def test_gradient_has_the_inputs_memory_format(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["channels-last"], device=device)
    _, grad = loss_and_grad(mk.region_loss, input, target, backend=backend)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_no_gradient_is_made_without_need(backend: str, device: str) -> None:
    target = torch.zeros(2, 10, 14, dtype=torch.int64, device=device)
    assert not mk.region_loss(LOGITS.to(device), target, backend=backend).requires_grad


@pytest.mark.parametrize("dtype", [d for d in FLOOR_PARAMS if d.values[0] != torch.float64])
def test_loss_scaling_survives_half_precision(dtype: torch.dtype, backend: str, device: str) -> None:
    """A gradient of some 1e-7 per cell, scaled by 65536 as a GradScaler does, must not pass through fp16 unscaled."""
    skip_unsupported(backend, dtype)
    input, target, _ = make(Case("big", (16, 16), (64, 64), classes=4, batch=1), dtype, device)
    scaled = lambda x, t, **o: mk.region_loss(x, t, **o) * 65536.0  # noqa: E731
    got = loss_and_grad(scaled, input, target, backend=backend)[1]
    exact = loss_and_grad(scaled, widen(input), target.cpu(), backend="reference")[1]
    torch.testing.assert_close(
        got.double().cpu(), exact, rtol=FLOORS[dtype] * 10, atol=exact.abs().max() * FLOORS[dtype]
    )


def compare_all() -> None:
    """Every case of the table in the vector width that METRICSEG_SIMD names."""
    for case in CASES:
        for dtype in (torch.float32, torch.float64):
            truth, plain, got = (
                results(case, "reference", torch.float64),
                results(case, "reference", dtype),
                results(case, "cpu", dtype),
            )
            for i in range(0, len(got), 2):
                assert_as_good(got[i], plain[i], truth[i], dtype)
                assert_gradient(got[i + 1], plain[i + 1], truth[i + 1], dtype)


@by_width
def test_narrower_vectors(width: str, fresh_processes: object) -> None:
    run_at(fresh_processes, width, "test_region_contract", "compare_all")
