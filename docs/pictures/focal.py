"""Focal loss of one pixel, and its gradient, over the probability of the label."""

import torch
from matplotlib.figure import Figure

from metricseg_kernels import focal_loss
from pictures import panels

CAPTION = "Loss and gradient of one pixel over the probability p of its label, by focal_loss with two classes."


def draw() -> Figure:
    p = torch.linspace(0.002, 0.998, 250)
    labels = torch.zeros(1, 1, len(p), dtype=torch.uint8)
    figure, (loss_panel, gradient_panel) = panels("loss", "gradient by its logit")
    for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
        logits = torch.stack((p.logit(), torch.zeros_like(p)))[None, :, None].requires_grad_()  # [1, 2, 1, N]
        loss = focal_loss(logits, labels, gamma=gamma, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        loss_panel.plot(p, loss.detach().flatten(), label=f"gamma {gamma:g}")
        gradient_panel.plot(p, gradient[0, 0, 0])
    loss_panel.set(xlabel="p", ylim=(0, 4))
    loss_panel.legend(frameon=False)
    gradient_panel.set(xlabel="p")
    return figure
