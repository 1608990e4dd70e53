"""Loss of a disk that is predicted too small or too large."""

import torch
from matplotlib.figure import Figure

from metricseg_kernels import region_loss
from pictures import panels

CAPTION = (
    "A disk of radius 30 in a picture of 128 x 128, predicted with another radius: region_loss of the two classes with "
    "smooth=0, and the Tversky losses that weigh false positives (alpha) and false negatives (beta) unequally."
)
FORMS = {
    "Dice": {"form": "dice"},
    "Jaccard": {"form": "jaccard"},
    "Tversky, alpha 0.2, beta 0.8": {"form": "tversky", "alpha": 0.2, "beta": 0.8},
    "Tversky, alpha 0.8, beta 0.2": {"form": "tversky", "alpha": 0.8, "beta": 0.2},
}


def draw() -> Figure:
    y, x = torch.meshgrid(*[torch.arange(128.0) - 63.5] * 2, indexing="ij")
    distance = (x**2 + y**2).sqrt()
    labels = (distance < 30).to(torch.uint8)[None]
    radii = torch.arange(4, 61, 2)
    figure, (panel,) = panels("loss over the predicted radius")
    for name, form in FORMS.items():
        losses = []
        for radius in radii.tolist():
            logits = torch.stack((distance - radius, radius - distance))[None]
            losses.append(region_loss(logits, labels, smooth=0.0, **form).item())
        panel.plot(radii, losses, label=name)
    panel.set(xlabel="radius", ylim=(0, None))
    panel.legend(frameon=False)
    return figure
