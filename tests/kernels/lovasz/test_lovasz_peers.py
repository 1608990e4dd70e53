"""The lovasz family against other libraries, which sort the errors."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from gradients import loss_and_grad
from lovasz_cases import NAMED, make

import metricseg_kernels as mk

FAMILY = "lovasz"


@pytest.mark.parametrize("per_image", [False, True])
def test_segmentation_models_pytorch(per_image: bool) -> None:
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    theirs = losses.LovaszLoss("multiclass", per_image=per_image, ignore_index=255)
    for name in ("up4", "primes", "confident"):
        input, target, _ = make(NAMED[name])  # it takes float32 alone
        truth = loss_and_grad(lambda x, t: theirs(F.interpolate(x, t.shape[-2:], mode="bilinear"), t), input, target)
        found = loss_and_grad(mk.lovasz_loss, input, target, bins=4096, per_image=per_image)
        assert abs(found[0] - truth[0]) < 1 / 4096
        assert (found[1] - truth[1]).norm() < 0.02 * truth[1].norm()
