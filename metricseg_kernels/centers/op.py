"""Private ops of the centers family: schemas, allocation, fakes, autograd.

Pixels x_i [C], i < N = h w of an image, and K rows w_k make three products: P = W X, T = A^T W, S = A X^T.
`folded` puts the norms of the centers and the scale into W. Then, with r_i = 1 / |x_i| for "cosine", else 1,
  logits_ik = r_i <x_i, w_k> + bias_k - square |x_i|^2     (bias and square: "euclidean" only)
  target_similarity_i = r_i <x_i, w_k>, k the label of i, before rounding; 0 without a label
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


def _none_if_empty(tensor: Tensor) -> Tensor | None:
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
    grad_target_similarity: Tensor | None
    features: Tensor
    weights: Tensor
    labels: Tensor | None
    norms: Tensor | None
    metric: str
    scale: float
    ignore_index: int
    logits: Tensor | None
    target_similarity: Tensor | None


def _similarity_outputs(
    features: Tensor, weights: Tensor, labels: Tensor | None, metric: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = features.shape
    pixels, acc = (batch, height, width), checks.accumulator(features.dtype)
    logits = features.new_empty((batch, weights.shape[1], height, width))
    target_similarity = features.new_empty(pixels if labels is not None else (0,), dtype=acc)
    norms = features.new_empty(pixels if metric == "cosine" else (0,), dtype=acc)
    return logits, target_similarity, norms


def _similarity(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, backend = SimilarityInputs(*arguments[:-1]), arguments[-1]
    outputs = _similarity_outputs(inputs.features, inputs.weights, inputs.labels, inputs.metric)
    kernels(backend).similarity_fwd_kernel(inputs, *map(_none_if_empty, outputs))
    return outputs


def _similarity_grad_outputs(
    features: Tensor, weights: Tensor, with_features: bool, with_weights: bool
) -> tuple[Tensor, Tensor]:
    grad_features = empty_gradient(features) if with_features else features.new_empty((0,))
    return grad_features, weights.new_empty(weights.shape if with_weights else (0,))


def _similarity_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, with_features, with_weights, backend = arguments
    call = SimilarityGradInputs(*inputs)
    gradients = _similarity_grad_outputs(call.features, call.weights, with_features, with_weights)
    kernels(backend).similarity_bwd_kernel(call, *map(_none_if_empty, gradients))
    return gradients


def _similarity_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weights, bias, labels, *ctx.scalars = inputs
    logits, target_similarity, norms = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(norms)
    keeps = backends.capability("centers", ctx.scalars[-1], "KEEPS_LOGITS")
    kept = (logits, _none_if_empty(target_similarity)) if keeps else (None, None)
    ctx.save_for_backward(features, weights, labels, _none_if_empty(norms), *kept)
    ctx.size = logits.shape
    ctx.bias_images = None if bias is None else bias.shape[0]


def _similarity_autograd(
    ctx: Any, grad_logits: Tensor | None, grad_target_similarity: Tensor | None, _: Any
) -> tuple[Any, ...]:
    grad_features = grad_weights = grad_bias = None
    if grad_logits is not None or grad_target_similarity is not None:
        # once: checkpointing makes them anew for each look
        features, weights, labels, norms, *kept = ctx.saved_tensors
        grad_logits = features.new_zeros(()).expand(ctx.size) if grad_logits is None else grad_logits
        wanted = ctx.needs_input_grad[:2]
        *scalars, backend = ctx.scalars
        gradients = ops.center_similarity_bwd(
            grad_logits, grad_target_similarity, features, weights, labels, norms, *scalars, *kept, *wanted, backend
        )
        grad_features, grad_weights = (g if w else None for g, w in zip(gradients, wanted, strict=True))
        if ctx.needs_input_grad[2]:
            grad_bias = grad_logits.sum((2, 3), dtype=weights.dtype)
            grad_bias = grad_bias.sum(0, keepdim=True) if ctx.bias_images == 1 else grad_bias
    return grad_features, grad_weights, grad_bias, *(None,) * 5


define_op(
    "center_similarity_fwd(Tensor features, Tensor weights, Tensor? bias, Tensor? labels, str metric, float scale, "
    "int ignore_index, str backend) -> (Tensor, Tensor, Tensor)",
    _similarity,
    lambda features, weights, bias, labels, metric, *_: _similarity_outputs(features, weights, labels, metric),
    _similarity_setup,
    _similarity_autograd,
)
define_op(
    "center_similarity_bwd(Tensor grad_logits, Tensor? grad_target_similarity, Tensor features, Tensor weights, "
    "Tensor? labels, Tensor? norms, str metric, float scale, int ignore_index, Tensor? logits, "
    "Tensor? target_similarity, bool with_features, bool with_weights, str backend) -> (Tensor, Tensor)",
    _similarity_backward,
    lambda _, __, features, weights, *rest: _similarity_grad_outputs(features, weights, *rest[-3:-1]),
)


# --- class sums ----------------------------------------------------------------------------------------------------


def _sums_outputs(features: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    batch, channels, acc = features.shape[0], features.shape[1], checks.accumulator(features.dtype)
    sums = features.new_empty((batch, num_classes, channels), dtype=acc)
    return sums, features.new_empty((batch, num_classes), dtype=acc)


def _sums(
    features: Tensor, assignment: Tensor, num_classes: int, ignore_index: int, name: str, backend: str
) -> tuple[Tensor, Tensor]:
    if not assignment.is_floating_point():
        check_labels(assignment, num_classes, ignore_index, name)
    sums, mass = _sums_outputs(features, num_classes)
    kernels(backend).class_sums_fwd_kernel(features, assignment, ignore_index, sums, mass)
    return sums, mass


def _sums_grad_outputs(
    features: Tensor, assignment: Tensor, with_features: bool, with_assignment: bool
) -> tuple[Tensor, Tensor]:
    grad_features = empty_gradient(features) if with_features else features.new_empty((0,))
    return grad_features, empty_gradient(assignment) if with_assignment else assignment.new_empty((0,))


def _sums_backward(
    grad_sums: Tensor,
    grad_mass: Tensor,
    features: Tensor,
    assignment: Tensor,
    ignore_index: int,
    with_features: bool,
    with_assignment: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    gradients = _sums_grad_outputs(features, assignment, with_features, with_assignment)
    kernels(backend).class_sums_bwd_kernel(
        grad_sums.contiguous(), grad_mass.contiguous(), features, assignment, ignore_index,
        *map(_none_if_empty, gradients),
    )  # fmt: skip
    return gradients


def _sums_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, assignment, _, ctx.ignore_index, _, ctx.backend = inputs
    ctx.save_for_backward(features, assignment)


def _sums_autograd(ctx: Any, grad_sums: Tensor, grad_mass: Tensor) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[:2]
    gradients = ops.class_sums_backward(
        grad_sums, grad_mass, *ctx.saved_tensors, ctx.ignore_index, *wanted, ctx.backend
    )
    return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), *(None,) * 4


define_op(
    "class_sums(Tensor features, Tensor assignment, int num_classes, int ignore_index, str name, str backend) "
    "-> (Tensor, Tensor)",
    _sums,
    lambda features, assignment, num_classes, *_: _sums_outputs(features, num_classes),
    _sums_setup,
    _sums_autograd,
)
define_op(
    "class_sums_backward(Tensor grad_sums, Tensor grad_mass, Tensor features, Tensor assignment, int ignore_index, "
    "bool with_features, bool with_assignment, str backend) -> (Tensor, Tensor)",
    _sums_backward,
    lambda _, __, features, assignment, ignore_index, *rest: _sums_grad_outputs(features, assignment, *rest[:2]),
)
