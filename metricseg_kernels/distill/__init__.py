"""Distillation of a teacher's class probabilities at label resolution.

Student and teacher are logits [B, K, h, w] at resolutions of their own, interpolated to the labels' size inside
the kernel: no [B, K, H, W] tensor exists, forward or backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from ..core.labels import IgnoreIndex, resolve_ignore_index
from ..core.library import ops
from ..engines.resized.arguments import check_pair, drop_channel
from . import op, reference


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | tuple[int, int],
    *,
    temperature: float = 1.0,
    kind: str = "kl",
    ignore_index: IgnoreIndex = "auto",
    reduction: str = "mean",
    align_corners: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Divergence of a student's class probabilities from a teacher's, both interpolated to label resolution.

    With z and y the K logits of student and teacher at a pixel after bilinear interpolation, T the temperature,
    p = softmax(z / T) and q = softmax(y / T), the loss of a pixel is

        kl          T^2 KL(q || p) = T^2 sum_k q_k (log q_k - log p_k)
        reverse_kl  T^2 KL(p || q) = T^2 sum_k p_k (log p_k - log q_k)
        js          T^2 (KL(p || m) + KL(q || m)) / 2,    m = (p + q) / 2

    with 0 log 0 = 0. T^2 keeps the size of the gradient where T changes.

    Args:
        student: [B, K, h, w] logits; float64, float32, bfloat16 or float16; NCHW or channels-last. Arithmetic is in
            float32 (float64 for float64).
        teacher: [B, K, h2, w2] logits of any (h2, w2) and layout. Its dtype may differ from the student's, except that
            float64 goes with float64. It gets a gradient if and only if it requires one: under torch.no_grad(), or
            after detach(), it costs nothing.
        target: labels [B, H, W] or [B, 1, H, W]; uint8, int32 or int64, read as they are; or a size (H, W), at which
            every pixel is valid. Labels only tell which pixels take part: any value but ignore_index is a label, also
            one that is no class.
        temperature: T > 0.
        kind: "kl", "reverse_kl" or "js".
        ignore_index: label of pixels that take no part; None for no label. "auto" is 255 if that is no class, and
            None if there are more than 255 classes.
        reduction: "mean" over the valid pixels, "sum", or "none" for the map [B, H, W] with 0 at ignored pixels.
        align_corners: as in torch.nn.functional.interpolate, for both maps.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        The loss in float32 (float64 for float64 input). Gradients have the dtype and memory format of their map.
        No valid pixel, or no pixel at all: 0, with a zero gradient. One class: 0. Equal maps: 0 to rounding. What the
        interpolated maps hold at an ignored pixel has no effect. A class of logit -inf in both maps has no share. If
        only the student ("kl") or the teacher ("reverse_kl") has it, the loss is inf; the gradient of "kl" is still
        T (p - q), that of "reverse_kl" is not finite. A NaN, an inf, or -inf for all classes makes the loss NaN. An
        infinite logit that is interpolated counts as in F.interpolate, which makes NaN of inf and a weight of 0.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, named with its value: a
            temperature that is not > 0, maps that differ in batch size or classes.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    "kl" with reduction "sum" equals, to rounding, T^2 times

        F.kl_div(F.log_softmax(F.interpolate(student, size, mode="bilinear") / T, 1),
                 F.log_softmax(F.interpolate(teacher, size, mode="bilinear") / T, 1), reduction="sum", log_target=True)

    except that F.kl_div gives NaN for a class of probability 0 in both. Its reduction "batchmean" divides by B, this
    "mean" by the number of valid pixels.

    Sources: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, for "kl"; Gu et al., MiniLLM, ICLR 2024,
    for "reverse_kl"; Lin, Divergence measures based on the Shannon entropy, 1991, for "js".
    """
    _check_maps(student, teacher)
    labels, (height, width) = _check_target(student, target)
    if height * width * student.shape[0] > 0:
        for name, map in (("student", student), ("teacher", teacher)):
            if map.numel() == 0:
                raise ValueError(f"{name} {tuple(map.shape)} is empty while the target, {(height, width)}, is not")
    checks.number("temperature", temperature, 0.0)
    if temperature == 0:
        raise ValueError("temperature must be > 0, got 0")
    checks.choice("kind", kind, op.KINDS)
    checks.choice("reduction", reduction, ("mean", "sum", "none"))
    checks.boolean("align_corners", align_corners)
    ignored = resolve_ignore_index(ignore_index, student.shape[1])
    reduce, mean = reduction != "none", reduction == "mean"
    scalars = (height, width, float(temperature), kind, ignored, align_corners)
    name = choose("distill", student.device, student.dtype, backend)
    if name == "reference":
        return reference.distill(student, teacher, labels, *scalars, reduce, mean)
    with_grad = reduce and _forward_makes_gradient(student, height * width)
    loss: Tensor = ops.distill_fwd(student, teacher, labels, *scalars, reduce, with_grad, mean, name)[0]
    return loss


def _forward_makes_gradient(student: Tensor, pixels: int) -> bool:
    """Whether forward also leaves the gradient of the summed loss. If not, backward recomputes.

    As in focal it pays if the logits are smaller than the labels. In float16 the gradient of the sum might leave the
    range.
    """
    learns = student.requires_grad and torch.is_grad_enabled() and student.dtype != torch.float16
    return learns and bool(pixels > student.shape[2] * student.shape[3])


def _check_maps(student: Tensor, teacher: Tensor) -> None:
    checks.tensor("student", student, 4, checks.FLOATS, "[B, K, h, w]")
    checks.tensor("teacher", teacher, 4, checks.FLOATS, "[B, K, h2, w2]")
    checks.same_device("teacher", teacher, "student", student)
    if teacher.shape[:2] != student.shape[:2]:
        raise ValueError(
            f"teacher {tuple(teacher.shape)} and student {tuple(student.shape)} differ in batch size or classes"
        )
    if (teacher.dtype == torch.float64) != (student.dtype == torch.float64):
        names = [checks.dtype_names((map.dtype,)) for map in (teacher, student)]
        raise TypeError(f"teacher has dtype {names[0]}, student {names[1]}; float64 goes with float64 alone")
    if student.shape[1] == 0:
        raise ValueError(f"student must have at least one class, got shape {tuple(student.shape)}")


def _check_target(student: Tensor, target: Tensor | tuple[int, int]) -> tuple[Tensor | None, tuple[int, int]]:
    """Labels [B, H, W] if there are any, and the size (H, W)."""
    if not isinstance(target, Tensor):
        if not isinstance(target, (tuple, list)) or len(target) != 2:
            raise TypeError(f"target must be labels [B, H, W] or a size (H, W), got {target!r}")
        for size in target:
            checks.integer("a size in target", size, 0, 2**31 - 1)
        return None, (target[0], target[1])
    target = drop_channel(target)
    check_pair(student, target, dense=False, name="student")
    return target, (target.shape[1], target.shape[2])
