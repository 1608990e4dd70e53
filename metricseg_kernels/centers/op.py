"""Private ops of the centers family: schemas, allocation, fakes, autograd.

Pixels x_i [C], i < N = h w of an image, and K rows w_k make three products: P = W X, T = A^T W, S = A X^T.
`folded` puts the norms of the centers and the scale into W. Then, with r_i = 1 / |x_i| for "cosine", else 1,
  logits_ik = r_i <x_i, w_k> + bias_k - square |x_i|^2     (bias and square: "euclidean" only)
  target_similarity_i = r_i <x_i, w_k>, k the label of i, before rounding; 0 without a label
and the pull is a mean of 1 - target_similarity / scale, see pull.py.
Derivation, backward, and arguments and shapes of the kernels: docs/kernels/centers.md.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from torch import Tensor

from ..core import backends, checks
from ..core.gradient import empty_gradient
from ..core.labels import check_labels
from ..core.library import define_op, ops
from ..core.unit import unit

kernels = functools.partial(backends.kernels, "centers")  # (backend) -> module


def folded(centers: Tensor, metric: str, scale: float) -> tuple[Tensor, Tensor | None]:
    """(weights [1 or B, K, C], bias [1 or B, K] or None) in the accumulator dtype, see above."""
    weights = centers.to(checks.accumulator(centers.dtype))
    weights = weights if weights.ndim == 3 else weights[None]
    if metric == "cosine":
        return scale * unit(weights, 2), None
    if metric == "dot":
        return scale * weights, None
    return 2 * scale * weights, -scale * weights.square().sum(2)


def none_if_empty(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.ndim > 1 else None


# --- similarity ----------------------------------------------------------------------------------------------------


class SimilarityInputs(NamedTuple):
    """Inputs of the forward kernel, as the schema has them."""

    features: Tensor
    weights: Tensor
    bias: Tensor | None
    labels: Tensor | None
    metric: str
    scale: float
    ignore_index: int


class SimilarityGradInputs(NamedTuple):
    """Inputs of the backward kernel, as the schema has them. The last two are kept where a backend KEEPS_LOGITS."""

    grad_logits: Tensor
    grad_pull: Tensor | None
    pull_stats: Tensor | None  # with grad_pull
    features: Tensor
    weights: Tensor
    labels: Tensor | None
    norms: Tensor | None
    metric: str
    scale: float
    ignore_index: int
    logits: Tensor | None
    target_similarity: Tensor | None


class SimilarityOutputs(NamedTuple):
    """Outputs of the forward op, as the schema has them. Those that a call lacks are empty."""

    logits: Tensor
    pull: Tensor
    pull_stats: Tensor
    target_similarity: Tensor
    norms: Tensor


def _similarity_outputs(features: Tensor, weights: Tensor, labels: Tensor | None, metric: str) -> SimilarityOutputs:
    batch, _, height, width = features.shape
    pixels, classes, acc = (batch, height, width), weights.shape[1], checks.accumulator(features.dtype)
    labeled, none = labels is not None, (0,)
    return SimilarityOutputs(
        features.new_empty((batch, classes, height, width)),
        features.new_empty(() if labeled else none, dtype=acc),
        features.new_empty((batch, 1 + classes) if labeled else none, dtype=acc),
        features.new_empty(pixels if labeled else none, dtype=acc),
        features.new_empty(pixels if metric == "cosine" else none, dtype=acc),
    )


def _similarity(*arguments: Any) -> SimilarityOutputs:
    *given, name, backend = arguments
    inputs = SimilarityInputs(*given)
    labels, classes = inputs.labels, inputs.weights.shape[1]
    if labels is not None:
        check_labels(labels, classes, inputs.ignore_index, name)
    out = _similarity_outputs(inputs.features, inputs.weights, labels, inputs.metric)
    maps = map(none_if_empty, (out.target_similarity, out.norms))
    kernels(backend).similarity_fwd_kernel(inputs, out.logits, *maps)
    if labels is not None:
        kernels(backend).pull_fwd_kernel(
            out.target_similarity, labels, inputs.scale, inputs.ignore_index, out.pull, out.pull_stats
        )
    return out


def _similarity_grad_outputs(
    features: Tensor, weights: Tensor, with_features: bool, with_weights: bool
) -> tuple[Tensor, Tensor]:
    grad_features = empty_gradient(features) if with_features else features.new_empty((0,))
    return grad_features, weights.new_empty(weights.shape if with_weights else (0,))


def _similarity_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, with_features, with_weights, backend = arguments
    call = SimilarityGradInputs(*inputs)
    gradients = _similarity_grad_outputs(call.features, call.weights, with_features, with_weights)
    kernels(backend).similarity_bwd_kernel(call, *map(none_if_empty, gradients))
    return gradients


def _similarity_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weights, bias, labels, *scalars, _, backend = inputs
    out = SimilarityOutputs(*output)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*out[2:], *((out.pull,) if labels is None else ()))
    keeps = backends.capability("centers", backend, "KEEPS_LOGITS")
    kept = (out.logits, none_if_empty(out.target_similarity)) if keeps else (None, None)
    stats, norms = map(none_if_empty, (out.pull_stats, out.norms))
    ctx.save_for_backward(stats, features, weights, labels, norms, *kept)
    ctx.scalars, ctx.size = (*scalars, backend), out.logits.shape
    ctx.bias_images = None if bias is None else bias.shape[0]


def _similarity_autograd(ctx: Any, grad_logits: Tensor | None, grad_pull: Tensor | None, *_: Any) -> tuple[Any, ...]:
    grad_features = grad_weights = grad_bias = None
    if grad_logits is not None or grad_pull is not None:
        # once: checkpointing makes them anew for each look
        stats, features, weights, labels, norms, *kept = ctx.saved_tensors
        grad_logits = features.new_zeros(()).expand(ctx.size) if grad_logits is None else grad_logits
        wanted = ctx.needs_input_grad[:2]
        *scalars, backend = ctx.scalars
        pull = (None, None) if grad_pull is None else (grad_pull, stats)
        gradients = ops.pixels_to_centers_bwd(
            grad_logits, *pull, features, weights, labels, norms, *scalars, *kept, *wanted, backend
        )
        grad_features, grad_weights = (g if w else None for g, w in zip(gradients, wanted, strict=True))
        if ctx.needs_input_grad[2]:
            grad_bias = grad_logits.sum((2, 3), dtype=weights.dtype)
            grad_bias = grad_bias.sum(0, keepdim=True) if ctx.bias_images == 1 else grad_bias
    return grad_features, grad_weights, grad_bias, *(None,) * 6


define_op(
    "pixels_to_centers_fwd(Tensor features, Tensor weights, Tensor? bias, Tensor? labels, str metric, float scale, "
    "int ignore_index, str name, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _similarity,
    lambda features, weights, bias, labels, metric, *_: _similarity_outputs(features, weights, labels, metric),
    _similarity_setup,
    _similarity_autograd,
)
define_op(
    "pixels_to_centers_bwd(Tensor grad_logits, Tensor? grad_pull, Tensor? pull_stats, Tensor features, Tensor weights, "
    "Tensor? labels, Tensor? norms, str metric, float scale, int ignore_index, Tensor? logits, "
    "Tensor? target_similarity, bool with_features, bool with_weights, str backend) -> (Tensor, Tensor)",
    _similarity_backward,
    lambda _, __, ___, features, weights, *rest: _similarity_grad_outputs(features, weights, *rest[-3:-1]),
)
