"""FlowAlign and SemanticRefinement: their start, their gradients, autocast, and a decoder that learns with them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metricseg_kernels as kernels
from metricseg.layers import FlowAlign, SemanticRefinement


def maps(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(2, 12, 5, 7, dtype=dtype), torch.randn(2, 6, 13, 20, dtype=dtype)


def perturbed(layer):
    torch.manual_seed(1)
    nn.init.normal_(layer.predictor.weight, std=0.1)
    nn.init.normal_(layer.predictor.bias)
    return layer


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("neighbors", [False, True])
def test_starts_as_bilinear_upsampling(neighbors, align_corners):
    coarse, fine = maps()
    layer = FlowAlign(12, 6, neighbors=neighbors, align_corners=align_corners)
    expected = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(layer(coarse, fine), expected)


@pytest.mark.parametrize("neighbors", [False, True])
def test_displacement_is_where_a_pixel_reads(neighbors):
    coarse, fine = maps(torch.float64)
    layer = perturbed(FlowAlign(12, 6, neighbors=neighbors).double())
    read = kernels.refine_upsample(coarse, layer.displacement(coarse, fine))
    torch.testing.assert_close(read, layer(coarse, fine))
    assert (read - layer(coarse, fine, refine=False)).abs().max() > 0.1


def test_flow_is_the_published_warp():
    """SFNet's flow_warp: a grid in [-1, 1] plus the flow over half the size, align_corners=True in both steps."""
    coarse, fine = maps(torch.float64)
    layer = perturbed(FlowAlign(12, 6, align_corners=True).double())
    (offsets, _), (height, width) = layer.offsets(coarse, fine), fine.shape[2:]
    rows = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width, dtype=torch.float64).expand(height, width)
    flow = torch.stack([2 * offsets[:, 1] / (width - 1), 2 * offsets[:, 0] / (height - 1)], 3)
    up = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    grid = torch.stack([columns, rows], 2) + flow
    expected = F.grid_sample(up, grid, mode="bilinear", padding_mode="border", align_corners=True)
    torch.testing.assert_close(layer(coarse, fine), expected)


def test_every_parameter_learns():
    coarse, fine = maps()
    layer = SemanticRefinement(12, 6, 8, hidden=5)
    perturbed(layer.align)
    output = layer(coarse.requires_grad_(), fine.requires_grad_())
    assert output.shape == (2, 8, 13, 20)
    output.square().sum().backward()
    for name, parameter in (*layer.named_parameters(), ("coarse", coarse), ("fine", fine)):
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_autocast_and_its_gradients():
    coarse, fine = maps()
    layer = SemanticRefinement(12, 6, 8, hidden=5)
    perturbed(layer.align)
    expected = layer(coarse, fine)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(coarse, fine)
    output.float().sum().backward()
    assert (output.float() - expected).norm() < 0.03 * expected.norm()


def test_offsets_learn_to_undo_a_shift():
    """The coarse map is the target moved by 3 fine pixels: a layer that reads it there is right, upsampling is not."""
    torch.manual_seed(0)
    target = F.interpolate(torch.randn(4, 3, 8, 8), (32, 32), mode="bicubic")
    coarse, layer = F.avg_pool2d(target.roll(3, 3), 2), FlowAlign(3, 3, hidden=4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    inner = (..., slice(4, 28), slice(4, 26))
    losses = []
    for _ in range(60):
        loss = F.mse_loss(layer(coarse, target)[inner], target[inner])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert abs(layer.offsets(coarse, target)[0][:, 1][..., 4:28, 4:26].median().item() - 3) < 0.5


@pytest.mark.parametrize("name", ["coarse_channels", "fine_channels", "hidden", "channels"])
@pytest.mark.parametrize("value", [0, 2.0, True])
def test_wrong_arguments_are_named(name, value):
    options = {"coarse_channels": 12, "fine_channels": 6, "channels": 8, name: value}
    if name == "coarse_channels":
        layer, _ = FlowAlign, options.pop("channels")
    else:
        layer = SemanticRefinement
    with pytest.raises(ValueError, match=f"{name} is {value!r}; it takes an integer >= 1"):
        layer(**options)
