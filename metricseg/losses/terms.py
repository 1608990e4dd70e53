"""Several losses on several outputs of one network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metricseg.losses.base import LOSSES, build_loss


@LOSSES.register("terms")
class Terms(nn.Module):
    """A weighted sum of losses on a network's outputs, for `SegmentationTask`.

        name: terms
        focal: {loss: {name: focal, gamma: 2.0}}
        contrast: {output: embedding, weight: 0.1, loss: {name: margin_contrast, margin: 1.0}}
        auxiliary: {output: auxiliary, weight: 0.4, loss: cross_entropy}

    Args:
        terms: by name, a mapping of `loss` (see `build_loss`), `output` (the output it takes; "logits" unless given),
            `weight` (its factor; 1) and `stride` (every stride-th cell of the output in both directions; 1).

    A term on "embedding" is called as loss(embedding [B, D, h, w], labels [B, H, W], logits [B, K, h, w]), whose
    sampling may ask where the prediction is wrong; any other as loss(output, labels).

    Raises ValueError, naming the term, for none at all, an unknown key, a weight that is not finite, or a stride below
    1.
    """

    def __init__(self, **terms: Mapping[str, Any]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("the loss has no terms; it takes at least one, by name")
        self.losses = nn.ModuleDict()
        self.plans: dict[str, tuple[str, float, int]] = {}
        for name, term in terms.items():
            keys = set(term) if isinstance(term, Mapping) else set()
            if "loss" not in keys or keys - {"loss", "output", "weight", "stride"}:
                raise ValueError(f"term {name!r} is {term!r}; it takes a mapping with loss, and output, weight, stride")
            output, weight, stride = term.get("output", "logits"), float(term.get("weight", 1)), term.get("stride", 1)
            if not math.isfinite(weight) or not isinstance(stride, int) or stride < 1:
                raise ValueError(
                    f"term {name!r} has weight {weight} and stride {stride}; they take a finite factor, an integer >= 1"
                )
            self.losses[name], self.plans[name] = build_loss(term["loss"]), (output, weight, stride)
        needs = {output for output, _, _ in self.plans.values()}
        self.needs = tuple(sorted(needs | {"logits"} if "embedding" in needs else needs))

    def forward(self, outputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Each term times its weight, by name: scalars whose sum is the loss. `outputs` holds what `needs` names."""
        values = {}
        for name, (output, weight, stride) in self.plans.items():
            features = outputs[output][..., ::stride, ::stride]
            logits = (outputs["logits"],) if output == "embedding" else ()
            values[name] = weight * self.losses[name](features, labels, *logits)
        return values
