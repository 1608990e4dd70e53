"""Bad input: a clear error that names the argument and the value, or the documented answer. Never a hang, never a crash."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from focal_cases import CASES, make
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.core import backends

FAMILY = "focal"

LOGITS = torch.zeros(2, 5, 4, 6)
TARGET = torch.zeros(2, 8, 12, dtype=torch.long)
DENSE = torch.zeros(2, 5, 8, 12)

# loss, positional arguments, keywords, exception, what the message says
BAD = [
    ("input-rank", mk.focal_loss, (LOGITS[0], TARGET), {}, ValueError, r"input must be \[B, K, h, w\] or \[B, K, d, h, w\], got shape \(5, 4, 6\)"),
    ("target-rank", mk.focal_loss, (LOGITS, TARGET[0]), {}, ValueError, r"target must be \[B, H, W\].*\(8, 12\)"),
    ("input-list", mk.focal_loss, ([1.0], TARGET), {}, TypeError, "input must be a Tensor.*list"),
    ("input-integer", mk.focal_loss, (LOGITS.long(), TARGET), {}, TypeError, "input must have dtype.*got int64"),
    ("target-bool", mk.focal_loss, (LOGITS, TARGET.bool()), {}, TypeError, "target must have dtype.*got bool"),
    ("target-float", mk.focal_loss, (LOGITS, TARGET.float()), {}, TypeError, "target must have dtype.*got float32"),
    ("batch", mk.focal_loss, (LOGITS, TARGET[:1]), {}, ValueError, r"\(1, 8, 12\).*\(2, 5, 4, 6\)"),
    ("device", mk.focal_loss, (LOGITS, TARGET.to("meta")), {}, ValueError, "target is on meta, input on cpu"),
    ("no-classes", mk.focal_loss, (LOGITS[:, :0], TARGET), {}, ValueError, "at least one class"),
    ("empty-logits", mk.focal_loss, (LOGITS[..., :0], TARGET), {}, ValueError, "is empty while target"),
    ("weight-length", mk.focal_loss, (LOGITS, TARGET), {"weight": torch.ones(4)}, ValueError, "weight.*per class, 5, got 4"),
    ("weight-dtype", mk.focal_loss, (LOGITS, TARGET), {"weight": torch.ones(5).int()}, TypeError, "weight.*got int32"),
    ("weight-rank", mk.focal_loss, (LOGITS, TARGET), {"weight": torch.ones(5, 1)}, ValueError, r"weight must be \[K\]"),
    ("weight-device", mk.focal_loss, (LOGITS, TARGET), {"weight": torch.ones(5, device="meta")}, ValueError, "weight is on meta"),
    ("weight-grad", mk.focal_loss, (LOGITS, TARGET), {"weight": torch.ones(5, requires_grad=True)}, ValueError, "weight requires grad"),
    ("gamma-negative", mk.focal_loss, (LOGITS, TARGET), {"gamma": -1.0}, ValueError, "gamma.*got -1.0"),
    ("gamma-nan", mk.focal_loss, (LOGITS, TARGET), {"gamma": float("nan")}, ValueError, "gamma.*got nan"),
    ("smoothing", mk.focal_loss, (LOGITS, TARGET), {"label_smoothing": 1.5}, ValueError, "label_smoothing.*got 1.5"),
    ("reduction", mk.focal_loss, (LOGITS, TARGET), {"reduction": "avg"}, ValueError, "reduction.*'avg'"),
    ("normalizer", mk.focal_loss, (LOGITS, TARGET), {"normalizer": "all"}, ValueError, "normalizer.*'all'"),
    ("avg-factor-sum", mk.focal_loss, (LOGITS, TARGET), {"avg_factor": 2.0, "reduction": "sum"}, ValueError, "avg_factor.*'sum'"),
    ("avg-factor-negative", mk.focal_loss, (LOGITS, TARGET), {"avg_factor": -1.0}, ValueError, "avg_factor.*got -1.0"),
    ("avg-factor-tensor", mk.focal_loss, (LOGITS, TARGET), {"avg_factor": torch.tensor(-1.0)}, ValueError, "avg_factor.*got -1.0"),
    ("pixel-weight-size", mk.focal_loss, (LOGITS, TARGET), {"pixel_weight": torch.ones(TARGET.shape[:2])}, ValueError, "pixel_weight must be"),
    ("pixel-weight-map", mk.cross_entropy, (LOGITS, TARGET), {"pixel_weight": torch.ones(TARGET.shape[1:])}, ValueError, "pixel_weight must be"),
    ("pixel-weight-type", mk.cross_entropy, (LOGITS, TARGET), {"pixel_weight": 2.0}, TypeError, "pixel_weight.*float"),
    ("one-class", mk.cross_entropy, (LOGITS[:, :1], TARGET), {}, ValueError, "two classes or more.*sigmoid_focal_loss"),
    ("ignore-index-huge", mk.cross_entropy, (LOGITS, TARGET), {"ignore_index": 2**63}, ValueError, "ignore_index must be in"),
    ("ignore-index-float", mk.cross_entropy, (LOGITS, TARGET), {"ignore_index": 1.5}, TypeError, "ignore_index must be an int"),
    ("ignore-index-name", mk.cross_entropy, (LOGITS, TARGET), {"ignore_index": "none"}, ValueError, "ignore_index.*'none'"),
    ("min-kept-float", mk.ohem_cross_entropy, (LOGITS, TARGET), {"min_kept": 2.5}, TypeError, "min_kept must be an int"),
    ("avg-factor-map", mk.focal_loss, (LOGITS, TARGET), {"avg_factor": torch.ones(3)}, ValueError, r"avg_factor.*\(3,\)"),
    ("backend", mk.focal_loss, (LOGITS, TARGET), {"backend": "gpu"}, ValueError, "backend must be one of.*'gpu'"),
    ("dense-classes", mk.sigmoid_focal_loss, (LOGITS, DENSE[:, :3]), {}, ValueError, "differ in batch size or classes"),
    ("dense-grad", mk.sigmoid_focal_loss, (LOGITS, DENSE.clone().requires_grad_()), {}, ValueError, "target requires grad"),
    ("alpha", mk.sigmoid_focal_loss, (LOGITS, TARGET), {"alpha": 2.0}, ValueError, "alpha.*got 2.0"),
    ("alpha-nan", mk.sigmoid_focal_loss, (LOGITS, TARGET), {"alpha": float("nan")}, ValueError, "alpha.*got nan"),
    ("thresh", mk.ohem_cross_entropy, (LOGITS, TARGET), {"thresh": 0.0}, ValueError, "thresh.*got 0"),
    ("top-k-none", mk.ohem_cross_entropy, (LOGITS, TARGET), {"top_k_percent": 0.0}, ValueError, "top_k_percent.*got 0.0"),
    ("top-k-percent", mk.ohem_cross_entropy, (LOGITS, TARGET), {"top_k_percent": 20}, ValueError, "top_k_percent.*got 20; 0.2 keeps a fifth"),
    ("top-k-beside", mk.ohem_cross_entropy, (LOGITS, TARGET), {"top_k_percent": 0.2, "thresh": 0.5}, ValueError, "takes the place of thresh.*thresh=0.5"),
    ("one-hot", mk.cross_entropy, (LOGITS, DENSE), {}, ValueError, r"class indices \[B, H, W\], got shape \(2, 5, 8, 12\);.*target.argmax\(1\)"),
    ("one-hot-integers", mk.ohem_cross_entropy, (LOGITS, DENSE.long()), {}, ValueError, r"got shape \(2, 5, 8, 12\);.*target.argmax\(1\)"),
    ("channel-float", mk.focal_loss, (LOGITS, TARGET[:, None].float()), {}, TypeError, "target must have dtype.*got float32"),
    ("min-kept", mk.ohem_cross_entropy, (LOGITS, TARGET), {"min_kept": -1}, ValueError, "min_kept.*got -1"),
]  # fmt: skip


@pytest.mark.parametrize("loss, args, kwargs, error, says", [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_bad_arguments(loss, args, kwargs, error, says) -> None:
    with pytest.raises(error, match=says):
        loss(*args, **kwargs)


@pytest.mark.parametrize(
    "loss", [mk.focal_loss, mk.sigmoid_focal_loss, mk.ohem_cross_entropy], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("label", [5, 7, 200, -1])
def test_label_out_of_range(loss, label: int, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU a ValueError with the value; on CUDA NaN, and the ValueError with METRICSEG_VALIDATE=1."""
    target = TARGET.to(device).clone()
    target[0, 0, 0] = target[1, 7, 11] = label
    monkeypatch.setenv("METRICSEG_VALIDATE", "1")
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"target holds 2 labels that are neither ignore_index (255) nor in [0, 5): for example {label}"
        ),
    ):
        loss(LOGITS.to(device), target, backend=backend)
    if device == "cuda":
        monkeypatch.delenv("METRICSEG_VALIDATE")
        assert loss(LOGITS.to(device), target, backend=backend).isnan()


def test_label_255_is_out_of_range_where_it_is_not_ignored(backend: str, device: str) -> None:
    target = TARGET.to(device, torch.uint8).clone()
    target[0, 0, 0] = 255
    with pytest.raises(ValueError, match="for example 255"):
        if device == "cuda":
            pytest.skip("CUDA answers with NaN")
        mk.focal_loss(LOGITS.to(device), target, ignore_index=254, weight=torch.ones(5), backend=backend)


@pytest.mark.parametrize(
    "loss", [mk.focal_loss, mk.sigmoid_focal_loss, mk.ohem_cross_entropy], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_logits_give_nan_and_return(loss, value: float, backend: str, device: str) -> None:
    logits = LOGITS.clone().to(device)
    logits[0, 2, 1, 1] = value
    logits.requires_grad_()
    result = loss(logits, TARGET.to(device), backend=backend)
    if loss is not mk.ohem_cross_entropy:  # there a NaN pixel may fall under the threshold
        assert result.isnan()
    result.backward()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(7, 10), (8, 12), (2, 3), (4, 12), (8, 6)], ids=lambda s: "x".join(map(str, s)))
def test_an_infinite_logit_reaches_as_far_as_in_interpolate(
    size: tuple[int, int], align_corners: bool, backend: str, device: str
) -> None:
    """Also the labels that weigh its cell by 0; on an axis without interpolation no other label, as torch has it on the
    CPU. Its CUDA kernel blends there too, and makes NaN of 0 * inf."""
    inf = torch.inf
    for y, x, value in ((0, 0, inf), (1, 1, -inf), (3, 5, inf), (2, 3, -inf), (0, 3, 3e38), (2, 0, inf)):
        logits = torch.randn(1, 5, 4, 6, generator=torch.Generator().manual_seed(0)).to(device)
        logits[0, 2, y, x] = value
        if value == -inf and (size[0] == 4 or size[1] == 6):
            continue  # torch weighs -inf by 1 and by 0 there, and takes the NaN
        if value == 3e38:
            logits[0, 2, y, x + 1] = -value  # their difference is infinite
        target = torch.zeros(1, *size, dtype=torch.long, device=device)
        for loss in (mk.cross_entropy, mk.sigmoid_focal_loss):
            ours, truth = (
                loss(logits.to(on), target.to(on), reduction="none", align_corners=align_corners, backend=b)
                for b, on in ((backend, device), ("reference", "cpu"))
            )
            assert torch.equal(ours.isfinite().cpu(), truth.isfinite()), (y, x)


@pytest.mark.parametrize("loss", [mk.cross_entropy, mk.sigmoid_focal_loss])
@pytest.mark.parametrize("cell", [(3, 5), (3, 2), (2, 5)], ids=["corner", "row", "column"])
@pytest.mark.parametrize(
    ("size", "classes"), [((8, 12), 5), ((7, 11), 5), ((16, 5), 5), ((7, 11), 901)], ids=["x2", "up", "down", "901"]
)
def test_minus_infinity_in_the_last_cells(
    size: tuple[int, int], classes: int, cell: tuple[int, int], loss: Callable[..., Tensor], backend: str, device: str
) -> None:
    """Labels beyond the last center, and none on a center: where torch's loss is finite, so are loss and gradient."""
    logits = torch.randn(1, classes, 4, 6, generator=torch.Generator().manual_seed(0)).to(device)
    logits[0, 2, cell[0], cell[1]] = -torch.inf
    target = torch.zeros(1, *size, dtype=torch.long, device=device)
    found = []
    for name in (backend, "reference"):
        x = logits.clone().requires_grad_()
        value = loss(x, target, reduction="none", backend=name)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), x)))
    assert found[1][0].isfinite().all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("gamma, alpha", [(0.0, -1.0), (0.5, 0.25), (2.0, 0.25), (3.7, 0.75)])
def test_infinite_logits_that_are_right(dense: bool, gamma: float, alpha: float, backend: str, device: str) -> None:
    """Sigmoid form: log sigmoid(inf) = 0 for class 1, which every label names; infinite where they are wrong."""
    sign = torch.tensor([-1.0, 1.0, -1.0], device=device).view(1, 3, 1, 1)
    x = (torch.inf * sign).expand(1, 3, 2, 3).contiguous().requires_grad_()
    target = (sign > 0).float().expand(1, 3, 2, 3) if dense else torch.ones(1, 2, 3, dtype=torch.long, device=device)
    options = {"gamma": gamma, "alpha": alpha, "backend": backend}
    loss = mk.sigmoid_focal_loss(x, target, reduction="none", **options)
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(*torch.autograd.grad(loss.sum(), x), torch.zeros_like(x))
    assert mk.sigmoid_focal_loss(-x, target, reduction="sum", **options) == torch.inf


def test_masked_logits_of_minus_infinity(backend: str, device: str) -> None:
    """-inf marks a class that is impossible; at label size torch's cross-entropy takes it, and so do we."""
    logits = torch.randn(1, 5, 6, 7, device=device)
    logits[:, 3] = -torch.inf
    target = torch.randint(0, 3, (1, 6, 7), device=device)
    logits.requires_grad_()
    ours = mk.cross_entropy(logits, target, backend=backend)
    theirs = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(ours, theirs)
    (a,), (b,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_of_probability_0(gamma: float, smoothing: float, backend: str, device: str) -> None:
    """The loss is infinite, and its gradient is still that of cross-entropy: the one of (1 - p)^gamma has the limit 0."""
    logits = torch.randn(
        1, 5, 2, 3, device=device, dtype=torch.float64, generator=torch.Generator(device).manual_seed(0)
    )
    logits[0, 2] = -torch.inf
    q = logits.softmax(1)
    target = torch.full((1, 2, 3), 2, device=device)
    logits.requires_grad_()
    loss = mk.focal_loss(logits, target, gamma=gamma, label_smoothing=smoothing, reduction="sum", backend=backend)
    assert loss == torch.inf
    label = (torch.arange(5, device=device) == 2).double().view(1, 5, 1, 1)
    expected = q - (1 - smoothing) * label - smoothing / 5
    torch.testing.assert_close(*torch.autograd.grad(loss, logits), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.999, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("margin", [0.0, 20.0, 88.0, 104.0, 1e4, 3e38])
def test_any_confidence_has_a_finite_gradient(gamma: float, margin: float, backend: str, device: str) -> None:
    """p -> 1 with 0 < gamma < 1 gives 0 * inf in the textbook formula, and p -> 0 gives log 0."""
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 0] = margin
    for smoothing in (0.0, 0.1):
        x = logits.to(device).requires_grad_()
        target = torch.tensor([[[0, 0], [1, 1]]], device=device)
        loss = mk.focal_loss(x, target, gamma=gamma, label_smoothing=smoothing, backend=backend)
        loss.backward()
        assert loss.isfinite() or margin > 1e38
        assert x.grad.isfinite().all() or margin > 1e38
        y = logits.to(device).requires_grad_()
        loss = mk.sigmoid_focal_loss(y, target, gamma=gamma, backend=backend)
        loss.backward()
        assert (loss.isfinite() and y.grad.isfinite().all()) or margin > 1e38


@pytest.mark.parametrize("loss", [mk.focal_loss, mk.cross_entropy, mk.sigmoid_focal_loss, mk.ohem_cross_entropy],
                         ids=lambda f: f.__name__)  # fmt: skip
@pytest.mark.parametrize("shape", [(2, 8, 12), (0, 8, 12), (2, 0, 12)])
def test_nothing_valid_is_zero_with_zero_gradient(loss, shape, backend: str, device: str) -> None:
    logits = torch.randn(shape[0], 5, 4, 6, device=device).requires_grad_()
    target = torch.full(shape, 255, device=device)
    result = loss(logits, target, backend=backend)
    result.backward()
    assert result == 0 and not logits.grad.any()


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="backend 'cuda' can't run here: it runs on cuda tensors, these are on cpu"):
        mk.focal_loss(LOGITS, TARGET, backend="cuda")
    monkeypatch.setenv("METRICSEG_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="'cuda' can't run here"):
        mk.focal_loss(LOGITS, TARGET)
    monkeypatch.setenv("METRICSEG_BACKEND", "nope")
    with pytest.raises(ValueError, match="METRICSEG_BACKEND must be one of.*'nope'"):
        mk.focal_loss(LOGITS, TARGET)
    monkeypatch.delenv("METRICSEG_BACKEND")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="triton.*can't run here"):
        mk.focal_loss(LOGITS, TARGET, backend="triton")


def test_without_the_extension_reference_takes_over_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.extension, "error", "no C++ compiler was found")
    backends._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="falls back to 'reference'.*no C\\+\\+ compiler was found"):
        first = mk.focal_loss(LOGITS, TARGET)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mk.focal_loss(LOGITS, TARGET) == first
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler was found"):
        mk.focal_loss(LOGITS, TARGET, backend="cpu")


def test_every_documented_case_makes_its_labels() -> None:
    """The table itself: each id once, and each case has the shapes it says."""
    assert len({c.id for c in CASES}) == len(CASES)
    for case in CASES:
        input, target, weight = make(case)
        assert input.shape == (case.batch, case.classes, *case.cells) and target.shape == (case.batch, *case.size)
        assert (weight is not None) == case.weighted and target.dtype == case.label_dtype
