"""Against what people use instead, where the formulas agree; and the troubles that theirs are known for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from centers_cases import Case, Inputs, learning, make
from torch import Tensor

import metricseg_kernels as mk

FAMILY = "centers"
SHARED = Case("peers", (2, 5, 7), 24, 11)
OWN = SHARED._replace(id="peers-own", centers="own")
by_case = pytest.mark.parametrize("case", [SHARED, OWN], ids=["shared", "own"])


@pytest.fixture
def peers():
    from benchmarks.harness import peers

    return peers


def assert_same(ours: Callable[[Inputs], Tensor], theirs: Callable[[Inputs], Tensor], case: Case, device: str,
                learn: tuple[str, ...] = ("features", "centers")) -> None:  # fmt: skip
    """Values and gradients in fp64."""
    results = []
    for function in (ours, theirs):
        inputs = learning(make(case, torch.float64, device), learn)
        value = function(inputs)
        weight = torch.linspace(-1, 2, value.numel(), dtype=value.dtype, device=device).view(value.shape)
        leaves = [getattr(inputs, name) for name in learn]
        results.append((value.detach(), *torch.autograd.grad((value * weight).sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@by_case
def test_normalise_and_einsum(case: Case, peers, backend: str, device: str) -> None:
    assert_same(
        lambda i: mk.center_similarity(i.features, i.centers, scale=7.0, backend=backend),
        lambda i: peers.cosine_logits(i.features, i.centers, 7.0), case, device,
    )  # fmt: skip


def test_normalise_and_convolution(peers, backend: str, device: str) -> None:
    assert_same(
        lambda i: mk.center_similarity(i.features, i.centers, scale=7.0, backend=backend),
        lambda i: peers.cosine_convolution(i.features, i.centers, 7.0), SHARED, device,
    )  # fmt: skip


@by_case
def test_cosine_similarity_of_every_pair(case: Case, backend: str, device: str) -> None:
    assert_same(
        lambda i: mk.center_similarity(i.features, i.centers, scale=1.0, backend=backend),
        lambda i: F.cosine_similarity(i.features[:, None], i.centers[..., None, None], dim=-3, eps=1e-12), case, device,
    )  # fmt: skip


def test_a_convolution_of_the_centers(backend: str, device: str) -> None:
    """metric="dot" with shared centers is a 1 x 1 convolution."""
    assert_same(
        lambda i: mk.center_similarity(i.features, i.centers, metric="dot", scale=1.0, backend=backend),
        lambda i: F.conv2d(i.features, i.centers[..., None, None]), SHARED, device,
    )  # fmt: skip


def test_cdist(backend: str, device: str) -> None:
    """metric="euclidean" is minus the square of torch.cdist's distances."""

    def theirs(i: Inputs) -> Tensor:
        return -0.5 * torch.cdist(i.features.flatten(2).mT, i.centers).square().mT.unflatten(2, (5, 7))

    assert_same(
        lambda i: mk.center_similarity(i.features, i.centers, metric="euclidean", scale=0.5, backend=backend),
        theirs, OWN, device,
    )  # fmt: skip


def test_softmax_and_bmm(peers, backend: str, device: str) -> None:
    assert_same(
        lambda i: mk.class_centers(i.features, i.logits, backend=backend),
        lambda i: peers.soft_class_centers(i.features, i.logits), SHARED, device, ("features", "logits"),
    )  # fmt: skip


def test_one_hot_and_einsum(peers, backend: str, device: str) -> None:
    assert_same(
        lambda i: mk.class_centers(i.features, i.labels, num_classes=11, backend=backend),
        lambda i: peers.hard_class_centers(i.features, i.labels, 11, 255), SHARED, device, ("features",),
    )  # fmt: skip


def test_linear_cross_entropy(peers, backend: str, device: str) -> None:
    """Labels at the resolution of the features."""
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has none")
    assert_same(
        lambda i: mk.cross_entropy(
            mk.center_similarity(i.features, i.centers, backend=backend), i.labels, backend=backend
        ),
        lambda i: peers.linear_cross_entropy(i.features, i.centers, i.labels, 15.0, 255), SHARED, device,
    )  # fmt: skip


def test_normalized_softmax_loss(backend: str, device: str) -> None:
    """pytorch-metric-learning's, of all pixels that have a label."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    module = losses.NormalizedSoftmaxLoss(11, 24, temperature=0.1)

    def theirs(i: Inputs) -> Tensor:
        del module.W
        module.W = i.centers.T
        module.cast_types = lambda *_: None
        known = i.labels != 255
        return module(i.features.movedim(1, -1)[known], i.labels[known])

    assert_same(
        lambda i: mk.cross_entropy(
            mk.center_similarity(i.features, i.centers, scale=10.0, backend=backend), i.labels, backend=backend
        ),
        theirs, SHARED, device,
    )  # fmt: skip


def test_where_their_gradient_of_nothing_explodes(peers, backend: str, device: str) -> None:
    """Of a feature of norm 0 (after a ReLU, in padding) F.normalize has a gradient of 1e12; ours is 0."""
    inputs = learning(make(SHARED._replace(zeros=True), device=device), ("features",))
    theirs = (peers.cosine_logits(inputs.features, inputs.centers, 15.0) * inputs.logits).sum()
    ours = (mk.center_similarity(inputs.features, inputs.centers, backend=backend) * inputs.logits).sum()
    torch.testing.assert_close(ours, theirs)
    (exploding,), (grad,) = (torch.autograd.grad(total, inputs.features) for total in (theirs, ours))
    assert exploding.abs().max() > 1e11
    assert grad.abs().max() < 1e3 and not grad[..., ::3].any()


def test_where_their_norm_leaves_fp16(peers, backend: str, device: str) -> None:
    """In fp16 the norm of large features is inf, and their logits are 0; 1e-12 is 0, and features of 0 give NaN."""
    features = torch.zeros(1, 64, 1, 2, dtype=torch.float16, device=device)
    features[..., 1] = 1e4
    centers = torch.ones(3, 64, dtype=torch.float16, device=device)
    theirs = peers.cosine_logits(features, centers, 15.0)
    assert theirs[..., 0].isnan().all() and not theirs[..., 1].any()
    ours = mk.center_similarity(features, centers, backend=backend)
    assert not ours[..., 0].any() and (ours[..., 1] == 15).all()
