"""Divergences of a student from a teacher of two classes, and their gradients."""

import torch
from matplotlib.figure import Figure

from metricseg_kernels import distillation_loss
from pictures import panels

CAPTION = (
    "A teacher whose classes have the logits 0 and 4, and a student with 0 and x: distillation_loss of one pixel, and "
    "its gradient at x. Where the student misses the teacher's class, the gradient of KL stays near -1. Those of "
    "reverse KL and of the Jensen-Shannon divergence vanish there, and the latter is at most log 2."
)
KINDS = {"KL": "kl", "reverse KL": "reverse_kl", "Jensen-Shannon": "js"}


def draw() -> Figure:
    x = torch.linspace(-4, 12, 161)
    teacher = torch.stack((torch.zeros_like(x), torch.full_like(x, 4.0)))[None, :, None]
    figure, (losses, slopes) = panels("loss", "gradient")
    for name, kind in KINDS.items():
        student = torch.stack((torch.zeros_like(x), x))[None, :, None].requires_grad_()
        loss = distillation_loss(student, teacher, (1, len(x)), kind=kind, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), student)
        losses.plot(x, loss.detach()[0, 0], label=name)
        slopes.plot(x, grad[0, 1, 0], label=name)
    for panel in (losses, slopes):
        panel.set(xlabel="x")
        panel.legend(frameon=False)
    losses.set(ylim=(0, 3))
    return figure
