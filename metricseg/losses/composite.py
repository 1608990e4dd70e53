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
        push: {output: push, weight: 1.0}

    Args:
        terms: by name, a mapping of `loss` (see `build_loss`), `output` (the output it takes; "logits" unless given),
            `weight` (its factor; 1) and `stride` (every stride-th cell of the output in both directions; 1). Without
            `loss` the output is itself one, a 0-d value.

    A term on "embedding" is called as loss(embedding [B, D, h, w], labels [B, H, W], logits [B, K, h, w]), whose
    sampling may depend on the prediction, unless its loss has the attribute `takes_logits` = False; any other as
    loss(output, labels).

    Raises ValueError, naming the term, for none at all, an unknown key, neither loss nor output, a weight that is not
    finite, or a stride below 1.
    """

    def __init__(self, **terms: Mapping[str, Any]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("the loss has no terms; it takes at least one, by name")
        self.losses = nn.ModuleDict()
        self.plans: dict[str, tuple[str, float, int]] = {}
        for name, term in terms.items():
            keys = set(term) if isinstance(term, Mapping) else set()
            known = {"output", "weight", *(("loss", "stride") if "loss" in keys else ())}
            if not keys & {"loss", "output"} or keys - known:
                raise ValueError(
                    f"term {name!r} is {term!r}; it takes a mapping with loss, and output, weight, stride, or with the "
                    "output that is a loss, and weight"
                )
            output, weight, stride = term.get("output", "logits"), float(term.get("weight", 1)), term.get("stride", 1)
            if not math.isfinite(weight) or not isinstance(stride, int) or stride < 1:
                raise ValueError(
                    f"term {name!r} has weight {weight} and stride {stride}; they take a finite factor, an integer >= 1"
                )
            self.plans[name] = (output, weight, stride)
            if "loss" in keys:
                self.losses[name] = build_loss(term["loss"])
        self.on_logits = {  # terms whose loss is called with the logits too
            name
            for name, loss in self.losses.items()
            if self.plans[name][0] == "embedding" and getattr(loss, "takes_logits", True)
        }
        needs = {output for output, _, _ in self.plans.values()}
        self.needs = tuple(sorted(needs | {"logits"} if self.on_logits else needs))

    def forward(self, outputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Each term times its weight, by name: scalars whose sum is the loss. `outputs` holds what `needs` names."""
        values = {}
        for name, (output, weight, stride) in self.plans.items():
            value = outputs[output]
            if name in self.losses:
                logits = (outputs["logits"],) if name in self.on_logits else ()
                value = self.losses[name](value[..., ::stride, ::stride], labels, *logits)
            elif value.ndim:
                raise ValueError(f"term {name!r} has no loss, and its output {output!r} is no 0-d value: {value.shape}")
            values[name] = weight * value
        return values
