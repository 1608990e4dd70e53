"""Against what people use instead, where the formulas agree; and the troubles that theirs are known for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import relative_error
from torch import Tensor

import metricseg_kernels as mk

FAMILY = "contrast"

# labels of the anchors, for which ContrastiveSeg's mean over anchors is finite: each has a positive
LABELS = {
    "random": torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(3)),
    "pairs": torch.arange(60) // 2,
    "two-classes": (torch.arange(60) > 1).long(),
    "one-class": torch.full((60,), 7),
    "views-in-order": torch.arange(60) % 6,
}


@pytest.fixture
def peers():
    from benchmarks.harness import peers

    return peers


def features(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    return F.normalize(x, dim=1).to(dtype).requires_grad_()


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_contrastive_seg(labels: Tensor, temperature: float, peers, backend: str, device: str) -> None:
    x, labels = features(60).to(device).detach().requires_grad_(), labels.to(device)
    theirs = peers.contrastive_seg(x, labels, None, None, temperature, 0.07)
    ours = mk.pixel_contrast_loss(x, labels, temperature=temperature, base_temperature=0.07, backend=backend)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    (a,), (b,) = torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("labels", [LABELS["random"], LABELS["two-classes"]], ids=["random", "two-classes"])
def test_contrastive_seg_against_a_bank(labels: Tensor, peers, backend: str, device: str) -> None:
    x, bank = (features(n).to(device).detach() for n in (60, 131))
    x.requires_grad_()
    labels, bank_labels = labels.to(device), torch.arange(131, device=device) % 5
    theirs = peers.contrastive_seg(x, labels, bank, bank_labels, 0.1, 0.07)
    ours = mk.pixel_contrast_loss(x, labels, bank, bank_labels, temperature=0.1, base_temperature=0.07, backend=backend)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    (a,), (b,) = torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_where_their_logarithm_of_zero_gives_nan(peers, backend: str, device: str) -> None:
    """An anchor opposite to all others, at a low temperature: every exp underflows, and theirs takes log 0
    (ContrastiveSeg#68)."""
    direction = F.normalize(torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=0)
    x = torch.stack([direction, -direction, -direction, -direction]).to(device).requires_grad_()
    single = x.detach().float().requires_grad_()
    labels = torch.tensor([0, 0, 1, 1], device=device)
    assert peers.contrastive_seg(single, labels, None, None, 0.01, 0.07).isnan()
    exact = mk.pixel_contrast_loss(x, labels, temperature=0.01, backend="reference")
    ours = mk.pixel_contrast_loss(single, labels, temperature=0.01, backend=backend)
    assert relative_error(ours, exact) < 1e-6
    (got,), (truth,) = torch.autograd.grad(ours, single), torch.autograd.grad(exact, x)
    assert relative_error(got, truth) < 1e-5


def test_cdist_margin(peers, backend: str, device: str) -> None:
    x = features(60).to(device).detach().requires_grad_()
    labels = LABELS["random"].to(device)
    theirs = peers.cdist_margin(x, labels, 1.0)
    ours = mk.margin_contrast_loss(x, labels, margin=1.0, backend=backend)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    (a,), (b,) = torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_shards_sum_to_the_whole(form: str, ranks: int, backend: str, device: str) -> None:
    """Each rank's anchors against everybody's rows: losses and gradients add up to those of one rank (PML#363)."""
    labels = LABELS["random"].to(device)
    ids = torch.arange(60, device=device)
    x = features(60).to(device).detach().requires_grad_()
    whole = mk.pixel_contrast_loss(x, labels, denominator=form, backend=backend)
    (expected,) = torch.autograd.grad(whole, x)
    sums, counts = [], []
    for own in torch.arange(60, device=device).chunk(ranks):
        total, stats = mk.pixel_contrast_loss(
            x[own], labels[own], x, labels, denominator=form, anchor_ids=ids[own], contrast_ids=ids,
            reduction="sum", return_stats=True, backend=backend,
        )  # fmt: skip
        sums.append(total)
        counts.append(stats.anchors)
    loss = sum(sums) / sum(counts)
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["SupConLoss", "ContrastiveLoss"])
def test_pytorch_metric_learning(name: str, peers, backend: str, device: str) -> None:
    pytest.importorskip("pytorch_metric_learning")
    x = features(60).to(device).detach().requires_grad_()
    labels = LABELS["random"].to(device)
    if name == "SupConLoss":
        theirs = peers.pml_supcon(x, labels, 0.1)
        ours = mk.pixel_contrast_loss(x, labels, temperature=0.1, denominator="all", backend=backend)
    else:
        theirs = peers.pml_contrastive(x, labels, 1.0)
        ours = mk.margin_contrast_loss(x, labels, margin=1.0, power=1, average="nonzero", backend=backend)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)
    (a,), (b,) = torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
