"""The CUDA kernels of the anchors family on the host: the tests of every backend, and what only a shim can show."""

from __future__ import annotations

from types import ModuleType

import cuda_host
import pytest
import torch
from anchors_cases import NAMED, UNLUCKY, arguments, make, make_features
from cuda_host.fixtures import *  # noqa: F403
from test_anchors import (  # noqa: F401
    test_a_crop_full_of_ignore,
    test_default_capacity,
    test_seed_as_number_tensor_or_generator,
    test_the_same_choice_on_every_backend,
)
from test_anchors_bad_input import test_label_out_of_range  # noqa: F401
from test_anchors_contract import (  # noqa: F401
    test_compile_fullgraph,
    test_margins_and_poison,
    test_margins_and_poison_of_rows,
    test_opcheck,
)
from test_gather_pixels import *  # noqa: F403

import metricseg_kernels as mk
from metricseg_kernels.anchors import op
from metricseg_kernels.anchors.reference import SampleInputs
from metricseg_kernels.core import checks

pytestmark = pytest.mark.slow


@pytest.fixture
def backend(shim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    shim.slacken(6.0)
    return cuda_host.stand_in(monkeypatch, op, shim)


@pytest.mark.parametrize("deviations", [-1.0, 0.0, 40.0])
@pytest.mark.parametrize("strategy", ["hard", "random"])
def test_bad_luck_is_repaired(strategy: str, deviations: float, shim: ModuleType, backend: str) -> None:
    """Limits under which cells find too few candidates, or more than there is room for: the same choice."""
    for case in UNLUCKY:
        labels, predictions, confidence = make(case)
        kwargs = {"seed": 2, **arguments(case, strategy, confidence)}
        shim.slacken(deviations)
        got = mk.sample_anchors(labels, predictions, backend=backend, **kwargs)
        truth = mk.sample_anchors(labels, predictions, backend="reference", **kwargs)
        assert all(torch.equal(a, b) for a, b in zip(got, truth, strict=True))


def test_order_of_threads_does_not_matter(shim: ModuleType, backend: str) -> None:
    labels, predictions, _ = make(NAMED["primes"])
    features, index = make_features((3, 70, 7, 11), "nchw", torch.float32, "cpu")
    results = []
    for seed in (0, 1):
        shim.configure(1, cuda_host.SHARED, seed)
        anchors = mk.sample_anchors(labels, predictions, seed=3, max_views=8, backend=backend)
        rows = mk.gather_pixels(x := features.clone().requires_grad_(), index.repeat(3), backend=backend)
        results.append((*anchors, rows.detach(), *torch.autograd.grad(rows.sum(), x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_labels_out_of_range_are_ignored_and_counted(backend: str) -> None:
    """The raw kernel, as a device runs it: no exception, no address made of such a label."""
    labels, predictions, _ = make(NAMED["even"])
    bad, clean = labels.clone(), labels.clone()
    bad[0, 3, 4], bad[1, 5, 6], bad[1, 5, 7] = 2**62, -(2**62), 5
    clean[0, 3, 4] = clean[1, 5, 6] = clean[1, 5, 7] = 255
    results = []
    for maps in (bad, clean):
        inputs = SampleInputs(maps, predictions, None, torch.tensor(1), 64, 9, 9, True, 5, 255, -1)
        outputs = op._sample_outputs(maps, 64)
        op.kernels(backend).sample_anchors_kernel(inputs, outputs)
        results.append(outputs)
    assert all(torch.equal(a, b) for a, b in zip(results[0][:3], results[1][:3], strict=True))
    assert results[0][3].tolist() == [3, 2**62] and results[1][3].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_index_out_of_range_is_nan_and_touches_nothing(dtype: torch.dtype, backend: str) -> None:
    features, index = make_features((2, 40, 3, 4), "nchw", dtype, "cpu")
    index[4:8] = torch.tensor([24, -2, 2**62, -(2**63)])
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    rows, norms, grad = torch.empty(37, 40, dtype=dtype), torch.empty(37, dtype=accumulator), torch.empty_like(features)
    op.kernels(backend).gather_pixels_fwd_kernel(features, index, True, 1e-12, rows, norms)
    assert rows[4:8].isnan().all() and rows[:4].isfinite().all() and rows[8:].isfinite().all()
    ordered, order = index.sort(stable=True)
    op.kernels(backend).gather_pixels_bwd_kernel(rows, rows, norms, ordered, order, True, 1e-12, grad)
    assert grad.isfinite().all()


def test_nan_stays_in_its_pixel(backend: str) -> None:
    features, index = torch.randn(1, 40, 3, 4), torch.arange(12)
    features[0, 7, 0, 1] = torch.nan
    rows, norms, grad = torch.empty(12, 40), torch.empty(12), torch.empty_like(features)
    op.kernels(backend).gather_pixels_fwd_kernel(features, index, True, 1e-12, rows, norms)
    op.kernels(backend).gather_pixels_bwd_kernel(torch.ones(12, 40), rows, norms, index, index, True, 1e-12, grad)
    assert rows[1].isnan().all() and rows.isfinite().all(1).sum() == 11
    assert grad[0, :, 0, 1].isnan().all() and grad.isfinite().all(1).sum() == 11


def test_launches_of_a_small_call(shim: ModuleType, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "validates", lambda _: False)
    labels, seed = torch.zeros(2, 32, 64, dtype=torch.int64), torch.tensor(1)
    _, found = cuda_host.launches(shim, lambda: mk.sample_anchors(labels, labels, seed=seed, backend=backend).index)
    assert len(found) <= 5, found


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
for B, h, w, K, S, views, least, dtype in [(2, 9, 13, 5, 40, 9, 3, "i8"), (3, 1, 41, 7, 5, 2, 0, "u1"),
                                           (1, 20, 50, 2, 300, 150, 0, "i4"), (0, 3, 3, 4, 8, 2, 0, "i8"),
                                           (2, 7, 9, 300, 7, 4, 0, "i8")]:
    labels = rng.integers(0, min(K, 6), (B, h, w)).astype(dtype)
    if B:
        labels[0, 0, 0] = 255
        labels[0, 0, 1:3] = [254, 200] if dtype == "u1" else [10**6, -7]
    predictions = rng.integers(0, min(K, 6), (B, h, w)).astype(dtype)
    first = rng.integers(0, 2, (B, h, w)).astype("u1")
    for deviations in (6.0, -1.0, 40.0):
        m.slacken(deviations)
        choices = [(predictions, None), (predictions, first), (None, first), (None, None)]
        for preferred in choices if deviations == 6.0 else choices[:1]:
            index, sampled, count, bad = np.empty(S, "i8"), np.empty(S, "i8"), np.empty((), "i8"), np.empty(2, "i8")
            m.sample_anchors_kernel(labels, *preferred, np.array(5), S, views, least, True, K, 255, -1,
                                    index, sampled, count, bad)
            n = int(count)
            assert (labels.ravel()[index[:n]] == sampled[:n]).all() and (index[n:] == -1).all()
            assert bad[0] == (B > 0) * (2 if K < 200 or dtype != "u1" else 1)
for C, dtype, acc in [(1, "f4", "f4"), (37, "f2", "f4"), (300, "u2", "f4"), (64, "f8", "f8")]:
    x = rng.standard_normal((2, C, 3, 5)).astype(dtype) if dtype != "u2" else np.full((2, C, 3, 5), 0x3f80, "u2")
    index = np.array([29, 0, -1, 7, 7, 30, -5, 7, 2**62])
    rows, norms, grad = np.empty((9, C), dtype), np.empty(9, acc), np.empty_like(x)
    order = np.argsort(index, kind="stable")
    for normalize in (True, False):
        m.gather_pixels_fwd_kernel(x, index, normalize, 1e-12, rows, norms)
        m.gather_pixels_bwd_kernel(np.broadcast_to(rows[:1], rows.shape), rows, norms, index[order], order,
                                        normalize, 1e-12, grad)
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:
    cuda_host.run_sanitized("anchors", ASAN_SCRIPT)
