"""Labels, confidence and entropy of a coarse map of logits."""

import torch
from matplotlib.figure import Figure

from metricseg_kernels import predict_labels
from pictures import CLASSES, bare, panels

CAPTION = (
    "Logits of five classes on 6 x 8 cells (left: the largest of each), predicted at 120 x 160: labels with straight "
    "borders between cells, and the entropy, which is high along them."
)


def draw() -> Figure:
    logits = 3 * torch.randn(1, 5, 6, 8)
    labels, entropy = predict_labels(logits, (120, 160), return_entropy=True)
    figure, axes = panels("6 x 8 cells", "predict_labels", "entropy", height=2.1)
    axes[0].imshow(logits[0].argmax(0).numpy(), cmap=CLASSES, vmin=0, vmax=4)
    axes[1].imshow(labels[0].numpy(), cmap=CLASSES, vmin=0, vmax=4)
    axes[2].imshow(entropy[0].numpy(), cmap="magma", vmin=0)
    for ax in axes:
        bare(ax)
    return figure
