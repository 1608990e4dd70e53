"""ContextualRefinement against its formulas in fp64, its gradients, and what it says of wrong arguments."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metricseg.layers import ContextualRefinement

STAGES = (3, 5, 7, 9)


def make(form, **options):
    """A layer whose every parameter is random."""
    torch.manual_seed(0)
    layer = ContextualRefinement(STAGES, 16, form=form, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def stages(size=32):
    torch.manual_seed(1)
    return [torch.randn(2, n, size >> i, (size + 8) >> i, dtype=torch.float64) for i, n in enumerate(STAGES)]


def joined(layer, maps):
    small = [layer.reduce[i](x) for i, x in enumerate(maps)]
    size = maps[2].shape[2:]
    pooled = [F.avg_pool2d(small[0], 4), F.avg_pool2d(small[1], 2), small[2]]
    return torch.cat([*pooled, F.interpolate(small[3], size, mode="bilinear")], 1)


def test_affinity_is_its_formula():
    layer, maps = make("affinity").eval(), stages()
    x = joined(layer, maps)
    attention, (batch, channels, height, width) = layer.attention, x.shape
    for b in range(batch):
        rows = x[b].reshape(channels, -1)
        y = rows + attention.channel_scale * ((rows @ rows.T / rows.shape[1] ** 0.5).softmax(1) @ rows)
        q, k, v = (
            (m.weight[:, :, 0, 0] @ y + m.bias[:, None]).T for m in (attention.query, attention.key, attention.value)
        )
        y = y + attention.space_scale * ((q @ k.T / q.shape[1] ** 0.5).softmax(1) @ v).T
        torch.testing.assert_close(layer(maps)[b], y.view(channels, height, width))


def test_gate_is_its_formula():
    layer, maps = make("gate").eval(), stages()
    x, gate = joined(layer, maps), layer.attention
    x = x * torch.sigmoid(gate.channel(F.adaptive_avg_pool2d(x, 1)))
    mean_and_max = torch.stack([x.mean(1), x.max(1).values], 1)
    torch.testing.assert_close(layer(maps), x * torch.sigmoid(gate.space(mean_and_max)))


@pytest.mark.parametrize("form", ["affinity", "gate"])
def test_every_parameter_learns(form):
    layer = make(form, at=1)
    output = layer(stages())
    assert output.shape == (2, 16, 16, 20)
    output.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize(
    "options, says",
    [
        ({"stages": ()}, "stages is"), ({"stages": (3, 0)}, "stages is"), ({"channels": 15}, "channels is 15; it takes a multiple"),
        ({"form": "self"}, "form is 'self'; it takes one of"), ({"at": 4}, "at is 4; it takes the index"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        ContextualRefinement(**{"stages": STAGES, "channels": 16, **options})
