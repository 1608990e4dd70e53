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
        contrast: {on: embedding, weight: 0.1, loss: {name: margin_contrast, margin: 1.0}}
        auxiliary: {on: auxiliary, weight: 0.4, loss: cross_entropy}

    Args:
        terms: by name, a mapping of `loss` (see `build_loss`), `on` (the output it takes; "logits" unless given),
            `weight` (its factor; 1) and `stride` (every stride-th cell of the output in both directions; 1).

    A term on "embedding" is called as loss(embedding [B, D, h, w], labels [B, H, W], predictions [B, h, w]), the
    predictions being the argmax of the logits; any other as loss(output, labels).

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
            unknown = set(term) - {"loss", "on", "weight", "stride"}
            if unknown or "loss" not in term:
                raise ValueError(f"term {name!r} has the keys {sorted(term)}; it takes loss, on, weight, stride")
            on, weight, stride = term.get("on", "logits"), float(term.get("weight", 1.0)), term.get("stride", 1)
            if not math.isfinite(weight) or not isinstance(stride, int) or stride < 1:
                raise ValueError(
                    f"term {name!r} has weight {weight} and stride {stride}; they take a finite factor, an integer >= 1"
                )
            self.losses[name], self.plans[name] = build_loss(term["loss"]), (on, weight, stride)
        outputs = {on for on, _, _ in self.plans.values()}
        self.needs = tuple(sorted(outputs | ({"logits"} if "embedding" in outputs else set())))

    def forward(self, outputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Each term times its weight, by name: scalars whose sum is the loss. `outputs` holds what `needs` names."""
        values = {}
        for name, loss in self.losses.items():
            on, weight, stride = self.plans[name]
            output = outputs[on][..., ::stride, ::stride]
            predictions = (outputs["logits"][..., ::stride, ::stride].argmax(1),) if on == "embedding" else ()
            values[name] = weight * loss(output, labels, *predictions)
        return values
