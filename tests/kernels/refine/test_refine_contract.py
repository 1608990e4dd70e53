"""Autograd, compilers, memory, determinism and bad input of refine_upsample."""

from __future__ import annotations

import pytest
import torch
from guard import Guarded, OnDevice
from refine_cases import CASES, NAMED, Case, make
from test_refine import results
from threads import each_of
from tolerances import skip_unsupported
from torch import Tensor
from torch._subclasses import FakeTensorMode

import metricseg_kernels as mk
from metricseg_kernels.refine import op, reference

FAMILY = "refine"
META = torch.device("meta")
X, OFFSETS, LOGITS = torch.randn(2, 5, 4, 6), torch.randn(2, 2, 8, 9), torch.randn(2, 9, 8, 9)
BAD = [
    ("features-list", ([1], OFFSETS), {}, TypeError, r"features must be a Tensor \[B, C, h, w\], got list"),
    ("features-rank", (X[0], OFFSETS), {}, ValueError, r"features must be \[B, C, h, w\], got shape \(5, 4, 6\)"),
    ("features-integer", (X.long(), OFFSETS), {}, TypeError, "features must have dtype.*int64"),
    ("offsets-channels", (X, LOGITS), {}, ValueError, r"offsets must be \[B, 2, H, W\] with B = 2, got shape \(2, 9, 8, 9\)"),
    ("offsets-batch", (X, OFFSETS[:1]), {}, ValueError, r"offsets must be \[B, 2, H, W\] with B = 2, got shape \(1, 2, 8, 9\)"),
    ("offsets-half", (X, OFFSETS.half()), {}, TypeError, "offsets must have the dtype of features, torch.float32.*float16"),
    ("offsets-double", (X.half(), OFFSETS.double()), {}, TypeError, "offsets must have the dtype of features.*got torch.float64"),
    ("offsets-device", (X, OFFSETS.to(META)), {}, ValueError, "offsets is on meta, features on cpu"),
    ("rows", (X, OFFSETS[:, :, :3]), {}, ValueError, "offsets must have at least the rows of features, 4, got 3"),
    ("columns", (X, OFFSETS[..., :5]), {}, ValueError, "offsets must have at least the columns of features, 6, got 5"),
    ("no-cells", (X[:, :, :0], OFFSETS), {}, ValueError, "offsets must have at least the rows of features, 1, got 8"),
    ("logits-channels", (X, OFFSETS, OFFSETS), {}, ValueError, r"neighbor_logits must be \[B, 9, H, W\].*\(2, 2, 8, 9\)"),
    ("logits-size", (X, OFFSETS, LOGITS[..., :7]), {}, ValueError, r"neighbor_logits must be of the dtype and size of offsets.*\[8, 7\]"),
    ("logits-dtype", (X.half(), OFFSETS, LOGITS.half()), {}, ValueError, "neighbor_logits must be of the dtype.*float16"),
    ("padding", (X, OFFSETS), {"padding": "reflection"}, ValueError, "padding must be one of.*'reflection'"),
    ("align-corners", (X, OFFSETS), {"align_corners": None}, TypeError, "align_corners must be a bool, got None"),
    ("backend", (X, OFFSETS), {"backend": "gpu"}, ValueError, "backend must be one of.*'gpu'"),
]  # fmt: skip


@pytest.mark.parametrize("args, kwargs, error, says", [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_bad_arguments(args, kwargs, error, says) -> None:
    with pytest.raises(error, match=says):
        mk.refine_upsample(*args, **kwargs)


@pytest.mark.kernels
def test_opcheck(backend: str, device: str) -> None:
    for name, wanted in (("channels-last", [True, True, True]), ("zeros-corners-flow", [False, True, False])):
        arguments = make(NAMED[name]._replace(shape=(1, 3, 3, 4), size=(5, 7)), torch.float32, device)
        maps = [arguments["features"].requires_grad_(), arguments["offsets"], arguments.get("neighbor_logits")]
        options = (NAMED[name].align_corners, NAMED[name].padding == "zeros")
        torch.library.opcheck(torch.ops.metricseg.refine_upsample_fwd.default, (*maps, *options, backend))
        upstream = torch.ones((), device=device).expand(1, 3, 5, 7)
        torch.library.opcheck(
            torch.ops.metricseg.refine_upsample_bwd.default,
            (upstream, *(m if m is None else m.detach() for m in maps), *options, wanted, backend),
        )


@pytest.mark.kernels
def test_compile_fullgraph(backend: str, device: str) -> None:
    torch._dynamo.reset()
    maps = [t.to(device) for t in (X, OFFSETS, LOGITS)]
    step = lambda x, *rest: mk.refine_upsample(2 * x, *rest, backend=backend)  # noqa: E731
    compiled = torch.compile(step, fullgraph=True)
    found = []
    for call in (step, compiled):
        leaves = [t.clone().requires_grad_() for t in maps]
        found.append(torch.autograd.grad(call(*leaves).square().sum(), leaves))
    for ours, eager in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager)


def test_no_shape_depends_on_data() -> None:
    """With tensors that hold no data every line of the reference and of the ops runs: the host asks for none."""
    with FakeTensorMode():
        leaves = [torch.zeros(t.shape, requires_grad=True) for t in (X, OFFSETS, LOGITS)]
        for output in (
            reference.upsample(*leaves, False, False),
            torch.ops.metricseg.refine_upsample_fwd(*leaves, False, False, "cuda"),
        ):
            assert output.shape == (2, 5, 8, 9)
            grads = torch.autograd.grad(output.sum(), leaves)
            assert [g.shape for g in grads] == [t.shape for t in leaves]


def test_the_reference_stays_on_the_device() -> None:
    """It is what runs on CUDA where the extension has no kernels."""
    with FakeTensorMode(), OnDevice():
        maps = [torch.zeros(t.shape, device="cuda") for t in (X, OFFSETS, LOGITS)]
        for zeros in (False, True):
            assert reference.upsample(*maps, False, zeros).shape == (2, 5, 8, 9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.kernels
def test_margins_and_poison(case: Case, dtype: torch.dtype, backend: str, device: str, monkeypatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    skip_unsupported(backend, dtype)
    arguments, guarded, found = make(case, dtype, device), Guarded(op.kernels(backend)), []
    for watched in (False, True):
        if watched:
            monkeypatch.setattr(op, "kernels", lambda _: guarded)
        found.append(results(mk.refine_upsample, arguments, backend=backend))
    assert guarded.calls == (1 if 0 in case.shape else 2)
    for expected, got in zip(*found, strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("name", ["primes", "channels-last", "many-channels", "far", "flow"])
@pytest.mark.kernels
def test_same_bits_twice_and_for_any_number_of_threads(name: str, backend: str, device: str) -> None:
    runs = []
    for _ in each_of(1, 1, 2, 3, backend=backend):
        runs.append(results(mk.refine_upsample, make(NAMED[name], torch.float32, device), backend=backend))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.kernels
def test_layouts_are_kept(backend: str, device: str) -> None:
    maps = [t.to(device) for t in (X, OFFSETS, LOGITS)]
    x = maps[0].contiguous(memory_format=torch.channels_last).requires_grad_()
    output = mk.refine_upsample(x, *maps[1:], backend=backend)
    (grad,) = torch.autograd.grad(output.sum(), x)
    for found in (output, grad):
        assert found.is_contiguous(memory_format=torch.channels_last) and not found.is_contiguous()


@pytest.mark.kernels
def test_double_backward_says_what_to_do(backend: str, device: str) -> None:
    maps = [t.to(device).requires_grad_() for t in (X, OFFSETS, LOGITS)]
    output = mk.refine_upsample(*maps, backend=backend)
    (grad,) = torch.autograd.grad(output.square().sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward runs only with backend='reference'"):
        grad.sum().backward()


def test_autocast_takes_maps_as_they_are(backend: str, device: str) -> None:
    maps = [t.to(device) for t in (X, OFFSETS, LOGITS)]
    with torch.autocast(device, torch.bfloat16):
        assert mk.refine_upsample(*maps, backend=backend).dtype == torch.float32
        skip_unsupported(backend, torch.bfloat16)
        half: Tensor = maps[0].bfloat16()
        assert mk.refine_upsample(half, *maps[1:], backend=backend).dtype == torch.bfloat16
