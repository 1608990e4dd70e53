"""What the ops of the centers family owe beyond their numbers: to autograd, compilers, threads and the host."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from centers_cases import (
    CASE_PARAMS,
    JOBS,
    NAMED,
    Case,
    Inputs,
    double,
    learning,
    make,
    run,
)
from gradients import gradcheck
from guard import Guarded, OnDevice, captured, never_waiting
from threads import each_of
from tolerances import FLOOR_PARAMS, FLOORS, skip_unsupported
from torch import Tensor
from torch._subclasses import FakeTensorMode

import metricseg_kernels as mk
from metricseg_kernels.centers import folding, op
from metricseg_kernels.core import backends

FAMILY = "centers"
SHARED = Case("gradcheck", (1, 1, 3), 3, 2, scale=2.0)
OWN = Case("gradcheck-own", (2, 1, 2), 2, 2, "own", layout="nhwc", scale=2.0)


@pytest.mark.parametrize("case", [SHARED, OWN], ids=["shared", "own"])
@pytest.mark.parametrize("name", JOBS)
def test_gradcheck(name: str, case: Case, backend: str, device: str) -> None:
    """The gradients of features, centers and logits."""
    if (
        backend == "triton"
        and device == "cpu"
        and name not in ("pulled", "soft", *("euclidean", "hard")[case is OWN :])
    ):
        pytest.skip("the kernels are those of others, where Triton is interpreted")
    job, inputs = JOBS[name], make(case, torch.float64, device)

    def outputs(*leaves: Tensor) -> Any:
        return job.call(inputs._replace(**dict(zip(job.learn, leaves, strict=True))), case, backend=backend)

    leaves = [getattr(learning(inputs, job.learn), leaf) for leaf in job.learn]
    if name == "pulled":  # to its second output the centers are a constant
        gradcheck(lambda x: outputs(x, inputs.centers), leaves[:1], backend, device)
        gradcheck(lambda w: outputs(inputs.features, w)[0], leaves[1:], backend, device)
    else:
        gradcheck(outputs, leaves, backend, device)


@pytest.mark.parametrize("name", JOBS)
def test_gradgradcheck_of_the_reference(name: str) -> None:
    job, inputs = JOBS[name], make(SHARED, torch.float64)
    leaf = job.learn[0]
    assert torch.autograd.gradgradcheck(
        lambda x: job.call(inputs._replace(**{leaf: x}), SHARED, backend="reference"),
        getattr(learning(inputs, job.learn), leaf),
    )


def test_gradgradcheck_of_the_push() -> None:
    centers = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    present = torch.tensor([[True, True, False], [True, True, True]])
    for margin in (-2.0, 0.1):
        push = lambda w, m=margin: mk.center_push(w, present, m)  # noqa: E731
        assert torch.autograd.gradcheck(push, centers) and torch.autograd.gradgradcheck(push, centers)


@pytest.mark.parametrize("name", ["cosine", "euclidean", "pulled", "pull", "soft", "hard"])
@pytest.mark.kernels
def test_double_backward_says_what_to_do(name: str, backend: str, device: str) -> None:
    job, inputs = JOBS[name], make(NAMED["two-classes"], device=device)
    for leaf in job.learn:
        learns = learning(inputs, (leaf,))
        outputs = job.call(learns, NAMED["two-classes"], backend=backend)
        loss = sum(o.square().sum() for o in (outputs if isinstance(outputs, tuple) else [outputs]))
        (grad,) = torch.autograd.grad(loss, getattr(learns, leaf), create_graph=True)
        with pytest.raises(RuntimeError, match="backend='reference'"):
            grad.square().sum().backward()


def test_backward_twice_gives_the_same(backend: str, device: str) -> None:
    for name in ("pulled", "soft", "hard"):
        inputs = learning(make(NAMED["primes"], device=device), JOBS[name].learn)
        outputs = JOBS[name].call(inputs, NAMED["primes"], backend=backend)
        loss = sum(o.square().sum() for o in (outputs if isinstance(outputs, tuple) else [outputs]))
        first, second = (torch.autograd.grad(loss, inputs.features, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("case, metric", [
    pytest.param(SHARED, "cosine", id="cosine-shared"), pytest.param(OWN, "euclidean", id="euclidean-own")
])  # fmt: skip
@pytest.mark.kernels
def test_opcheck_of_similarity(case: Case, metric: str, backend: str, device: str) -> None:
    features, centers, _, labels = learning(make(case, device=device), ("features", "centers"))
    forward, backward = torch.ops.metricseg.pixels_to_centers_fwd, torch.ops.metricseg.pixels_to_centers_bwd
    weights, bias = op.folded(centers.detach(), metric, 2.0)
    if metric != "cosine":
        labels = None
    given = (labels, metric, 2.0, case.ignore_index, "name", backend)
    leaves = (features, weights.requires_grad_(), None if bias is None else bias.requires_grad_())
    torch.library.opcheck(forward.default, (*leaves, *given))
    features, weights, bias = (t if t is None else t.detach() for t in leaves)
    torch.library.opcheck(forward.default, (features, weights, bias, None, *given[1:]))
    out = op.SimilarityOutputs(*forward(features, weights, bias, *given))
    pull = (None, None) if labels is None else (torch.rand_like(out.pull), out.pull_stats)
    keeps = backends.capability("centers", backend, "KEEPS_LOGITS")
    kept = (out.logits, op.none_if_empty(out.target_similarity)) if keeps else (None, None)
    saved = (features, weights, labels, op.none_if_empty(out.norms), *given[1:4], *kept)
    grad_logits, expanded = torch.rand_like(out.logits), torch.ones((), device=device).expand(out.logits.shape)
    for grad, wanted in ((grad_logits, (True, True)), (expanded, (True, False)), (expanded, (False, True))):
        torch.library.opcheck(backward.default, (grad, *pull, *saved, *wanted, backend))


@pytest.mark.kernels
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_folding(metric: str, backend: str, device: str) -> None:
    """Centers of any norm and stride have the weights and the gradient of plain PyTorch."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 0.0, 1e-13, 1e-30, 1e10, 3.0])
    centers = (torch.randn(33, 6, generator=generator) * scales).t().to(device)  # [6, 33], strided
    results = []
    for dtype, fold in ((torch.float32, partial(folding.fold, backend=backend)), (torch.float32, op.folded),
                        (torch.float64, op.folded)):  # fmt: skip
        leaf = centers.to(dtype).requires_grad_()
        parts = [part for part in fold(leaf, metric, 3.0) if part is not None]
        upstream = [torch.linspace(-1, 1, w.numel(), dtype=dtype, device=device).view(w.shape) for w in parts]
        values = [*parts, *torch.autograd.grad(parts, leaf, upstream)]
        results.append([value.detach().double().view(6, -1) for value in values])
    for ours, plain, exact in zip(*results, strict=True):
        error, allowed = ((found - exact).abs().amax(1) for found in (ours, plain))
        assert (error <= 2 * allowed + FLOORS[torch.float32] * exact.abs().amax(1)).all()


@pytest.mark.kernels
def test_opcheck_of_folding(backend: str, device: str) -> None:
    forward, backward = torch.ops.metricseg.fold_centers_fwd.default, torch.ops.metricseg.fold_centers_bwd.default
    for metric in ("cosine", "euclidean"):
        centers = torch.rand(6, 33, device=device)
        torch.library.opcheck(forward, (centers.clone().requires_grad_(), metric, 3.0, backend))
        grads = forward(centers, metric, 3.0, backend)
        torch.library.opcheck(
            backward, (grads[0], grads[1] if metric == "euclidean" else None, centers, metric, 3.0, backend)
        )


@pytest.mark.parametrize("case", [SHARED, OWN], ids=["nchw", "nhwc"])
@pytest.mark.kernels
def test_opcheck_of_class_means(case: Case, backend: str, device: str) -> None:
    features, _, logits, labels = learning(make(case, device=device), ("features", "logits"))
    forward, backward = torch.ops.metricseg.class_means_fwd, torch.ops.metricseg.class_means_bwd
    for assignment, by_mass in itertools.product((logits, labels), (True, False)):
        given = (case.classes, case.ignore_index, by_mass, "name", backend)
        torch.library.opcheck(forward.default, (features, assignment, *given))
        soft = assignment is logits
        centers, _, totals, _ = forward(features.detach(), assignment.detach(), *given)
        means = centers if soft and by_mass else None
        saved = (means, totals, features.detach(), assignment.detach(), case.ignore_index)
        for grad, wanted in (
            (torch.rand_like(centers), True),
            (torch.ones((), device=device).expand_as(centers), False),
        ):
            torch.library.opcheck(backward.default, (grad, *saved, wanted, soft, backend))


def system(inputs: Inputs, target: Tensor, backend: str) -> tuple[Tensor, ...]:
    """Every function in one graph: soft centers of a head's logits, similarity to them, the losses on both."""
    head = inputs.logits * 1.5
    centers, present = mk.class_centers(inputs.features, head, return_present=True, backend=backend)
    kwargs = {"num_classes": inputs.logits.shape[1], "return_present": True, "backend": backend}
    _, seen = mk.class_centers(inputs.features, inputs.labels, **kwargs)
    w = centers + inputs.centers
    logits, pull = mk.center_similarity(inputs.features, w, pull_labels=inputs.labels, backend=backend)
    far = mk.center_similarity(inputs.features, inputs.centers, metric="euclidean", scale=0.1, backend=backend)
    pixels = mk.cross_entropy(logits + far, target, backend=backend)
    alone = mk.center_pull(inputs.features, centers, inputs.labels, backend=backend)
    return pixels, pull, alone, mk.center_push(w, present & seen, 0.1)


def core_of_system(inputs: Inputs, target: Tensor, backend: str) -> tuple[Tensor, ...]:
    """Soft centers, and the cross-entropy of the similarity to them: few operations to compile."""
    w = inputs.centers + mk.class_centers(inputs.features, inputs.logits, backend=backend)
    return (mk.cross_entropy(mk.center_similarity(inputs.features, w, backend=backend), target, backend=backend),)


def system_and_grads(inputs: Inputs, target: Tensor, backend: str, function: Any = system) -> list[Tensor]:
    names = ("features", "centers", "logits")
    inputs = learning(inputs, names)
    losses = function(inputs, target, backend)
    return [*losses, *torch.autograd.grad(sum(losses), [getattr(inputs, n) for n in names])]


def target_for(inputs: Inputs) -> Tensor:
    return inputs.labels.repeat_interleave(2, 1).repeat_interleave(2, 2).contiguous()


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_fullgraph(compiler: str, backend: str, device: str) -> None:
    """Ignored pixels included: a compiled graph must not lose them silently."""
    if compiler == "inductor" and backend == "reference":
        pytest.skip("plain PyTorch")
    inputs = make(Case("compiled", (2, 3, 5), 8, 4), device=device)
    target = target_for(inputs)
    function = system if compiler == "aot_eager" else core_of_system
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    results = (system_and_grads(inputs, target, backend, f) for f in (compiled, function))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=2e-5, atol=1e-6)


def test_autocast_takes_the_features_as_they_are(backend: str, device: str) -> None:
    """bf16 features of a layer, fp32 centers; and no product is cast down."""
    skip_unsupported(backend, torch.bfloat16)
    inputs = make(NAMED["primes"], device=device)
    layer = torch.nn.Conv2d(13, 13, 1, device=device)
    with torch.autocast(device, torch.bfloat16):
        features = layer(inputs.features)
        logits, pull = mk.center_similarity(features, inputs.centers, pull_labels=inputs.labels, backend=backend)
        means = mk.class_centers(features, inputs.logits, backend=backend)
    assert features.dtype == logits.dtype == means.dtype == torch.bfloat16 and pull.dtype == torch.float32
    (logits.float().mean() + pull + means.float().mean()).backward()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()
    for narrow in (features.detach(), inputs.features):

        def everything(x: Tensor = narrow) -> tuple[Tensor, ...]:
            return (
                *mk.center_similarity(x, inputs.centers, pull_labels=inputs.labels, backend=backend),
                mk.center_similarity(x, inputs.centers, metric="euclidean", backend=backend),
                mk.class_centers(x, inputs.logits, backend=backend),
                mk.class_centers(x, inputs.labels, num_classes=19, backend=backend),
                mk.center_push(inputs.centers),
            )  # fmt: skip

        with torch.autocast(device, torch.bfloat16):
            inside = everything()
        assert all(torch.equal(a, b) for a, b in zip(inside, everything(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASE_PARAMS)
@pytest.mark.kernels
def test_margins_and_poison(case: Case, dtype: torch.dtype, backend: str, device: str, monkeypatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    skip_unsupported(backend, dtype)
    inputs = make(case, dtype, device)
    names = ("dot", "euclidean", "pulled", "soft", "hard")

    def work() -> list[Tensor]:
        found = [run(JOBS[name], inputs, case, backend=backend) for name in names]
        found += [run(JOBS[name], inputs, case, (leaf,), backend=backend)
                  for name in ("cosine", "soft") for leaf in JOBS[name].learn]  # fmt: skip
        return [t for outputs, grads in found for t in outputs + grads]

    plain = work()
    guarded = Guarded(op.kernels(backend))
    monkeypatch.setattr(op, "kernels", lambda _: guarded)
    watched = work()
    assert guarded.calls == 2 * (5 + 4) + 1  # forward and backward each; and the pull of "pulled"
    for a, b in zip(plain, watched, strict=True):
        assert torch.equal(a.nan_to_num(-1e30), b.nan_to_num(-2e30))


@pytest.mark.parametrize("name", ["channels-last-own", "primes", "ade20k", "many-channels"])
@pytest.mark.kernels
def test_same_bits_twice(name: str, backend: str, device: str) -> None:
    """With any number of threads; the library's matrix products round differently from number to number."""
    inputs = make(NAMED[name], device=device)
    for _ in each_of(1, 2, 3) if backend == "cpu" else range(1):
        for job in ("euclidean", "pulled", "soft", "hard"):
            (one, grads), (two, same) = (run(JOBS[job], inputs, NAMED[name], backend=backend) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(one + grads, two + same, strict=True))


@pytest.mark.kernels
def test_gradients_have_the_memory_format_of_their_inputs(backend: str, device: str) -> None:
    for name in ("channels-last-own", "channels-last-one-image"):
        inputs = make(NAMED[name], device=device)
        for job in ("cosine", "soft", "hard"):
            outputs, grads = run(JOBS[job], inputs, NAMED[name], backend=backend)
            assert outputs[0].is_contiguous() and grads[0].is_contiguous(memory_format=torch.channels_last)
            assert job != "soft" or grads[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [d for d in FLOOR_PARAMS if d.values[0] not in (torch.float64, torch.float32)])
def test_loss_scaling_survives_half_precision(dtype: torch.dtype, backend: str, device: str) -> None:
    """A small gradient, scaled by 65536 as a GradScaler does, must not pass through fp16 unscaled."""
    skip_unsupported(backend, dtype)
    case = Case("scaled", (1, 16, 16), 32, 6, magnitude=30.0)
    inputs, results = make(case, dtype, device), []
    for i, b in ((inputs, backend), (double(inputs), "reference")):
        learns = learning(i, ("features",))
        pull = JOBS["pull"].call(learns, case, backend=b)
        area = JOBS["hard-area"].call(learns, case, backend=b)
        ((pull + 1e-3 * area.to(pull.dtype).mean()) * 65536.0).backward()
        results.append(learns.features.grad.double().cpu())
    got, exact = results
    torch.testing.assert_close(got, exact, rtol=FLOORS[dtype] * 10, atol=exact.abs().max() * FLOORS[dtype] * 2)


def map_of_every_kind(device: str) -> tuple[Inputs, Tensor]:
    inputs = make(Case("kinds", (2, 6, 8), 16, 5, label_dtype=torch.uint8), device=device)
    return inputs, target_for(inputs)


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_no_shape_depends_on_data_and_nothing_meets_the_host(name: str) -> None:
    """With tensors on a device that hold no data every line runs: the host asks for none, and sends none."""
    with FakeTensorMode(), OnDevice():
        labels, target = (torch.empty(2, h, w, dtype=torch.uint8, device="cuda") for h, w in ((6, 8), (12, 16)))
        maps = (torch.empty(s, device="cuda") for s in ((2, 16, 6, 8), (5, 16), (2, 5, 6, 8)))
        assert all(loss.shape == () for loss in system(Inputs(*maps, labels), target, name))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_the_host_never_waits(name: str) -> None:
    """Under the mode in which PyTorch raises at a synchronisation, and captured into a CUDA graph."""
    inputs, target = map_of_every_kind("cuda")
    step = lambda: system_and_grads(inputs, target, name)  # noqa: E731
    step()  # what is compiled at the first call
    with never_waiting():
        step()
    graph, results = captured(step)
    for scale in (1.0, -0.5):
        inputs.features.mul_(scale)
        graph.replay()
        for replayed, eager in zip(results, step(), strict=True):
            torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)
