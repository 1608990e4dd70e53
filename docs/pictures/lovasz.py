"""Distance of the loss and of its gradient from those of sorted errors, by the number of bins."""

import torch
from matplotlib.figure import Figure

from metricseg_kernels import lovasz_loss
from pictures import panels

CAPTION = (
    "lovasz_loss and a sort, on the same 8 classes at 64 x 64 pixels: difference of the loss, with its bound 1 / bins, "
    "and relative difference of the gradient."
)
BINS = [2**n for n in range(1, 13)]


def sorted_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = []
    for k in range(probabilities.shape[1]):
        own = (labels == k).double().flatten()
        errors, order = (own - probabilities[:, k].flatten()).abs().sort(descending=True)
        hits, union = own.sum() - own[order].cumsum(0), own.sum() + (1 - own[order]).cumsum(0)
        jaccard = 1 - hits / union
        losses.append((errors * torch.cat([jaccard[:1], jaccard.diff()])).sum())
    return torch.stack(losses).mean()


def draw() -> Figure:
    logits = (2 * torch.randn(1, 8, 64, 64, dtype=torch.float64)).requires_grad_()
    labels = (logits + 2 * torch.randn(1, 8, 64, 64)).argmax(1)
    truth = sorted_loss(logits.softmax(1), labels)
    (slope,) = torch.autograd.grad(truth, logits)
    losses, slopes = [], []
    for bins in BINS:
        loss = lovasz_loss(logits, labels, bins=bins)
        (grad,) = torch.autograd.grad(loss, logits)
        losses.append((loss - truth).abs().item())
        slopes.append(((grad - slope).norm() / slope.norm()).item())
    figure, (left, right) = panels("difference of the loss", "difference of the gradient")
    left.loglog(BINS, losses, "o-", markersize=4, label="found")
    left.loglog(BINS, [1 / bins for bins in BINS], "--", label="bound")
    left.legend(frameon=False)
    right.loglog(BINS, slopes, "o-", markersize=4)
    for panel in (left, right):
        panel.set(xlabel="bins")
    return figure
