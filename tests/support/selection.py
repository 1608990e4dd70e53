"""Which tests of Triton kernels run where.

Each case costs a compilation. On a device, dtypes other than fp32 take a part of the cases. Without one, all of these
run compiled (ttsem_plugin.py), but for opcheck and torch.compile, which look for a driver. Triton's interpreter takes
seconds for a case and has no bf16 arithmetic: it keeps a core of cases in fp32, and of these every sixth one of a test.
METRICSEG_CASES=n takes every n-th case instead, of the interpreter's or of ttsem's.
"""

from __future__ import annotations

import collections
import importlib
import os
from fnmatch import fnmatchcase

import pytest
import torch

from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

BRIEF = ("test_margins_and_poison", "test_other_forms", "test_focal_map", "test_sigmoid_focal_of_labels")
NOT_INTERPRETED = (
    "test_gradcheck[[]triton-*-[ac]]", "test_every_class_of_the_full_ade20k*",
    "test_cross_entropy_is_torchs[[]*-ade]", "test_any_confidence_has_a_finite_gradient*-0.[19]*",
    "test_any_confidence_has_a_finite_gradient*-8.0]", "test_an_infinite_logit*-[248]x*-True]",
    "test_margins_and_poison*-many-classes]", "test_more_*_than_a_panel*", "test_compile_fullgraph*-aot_eager]",
    "test_nothing_but_the_gradient_is_larger_than_the_logits*", "test_a_bad_pixel_keeps_to_itself*-nhwc*",
    "test_opcheck[[]*-all*", "test_other_forms*-float64]", "test_one_channel*-float64]",
    "test_opcheck[[]triton-two-*", "test_opcheck[[]triton-*-margin]", "test_gradient_to_one_side[[]triton*",
    "test_margin_forms[[]triton*", "test_same_bits_twice[[]triton-*-nineteen-classes]", "test_sum_and_stats[[]triton*",
    "test_double_backward_says_what_to_do[[]triton-[am]*", "test_a_nan_row_that_is_ignored*[[]triton-[am]*",
    "test_backward_twice_gives_the_same[[]triton*", "test_labels_are_compared_never_addressed[[]triton*",
    "test_non_finite_features_return[[]triton-[am]*", "test_nothing_to_compare_is_zero*[[]triton*",
    "test_avg_factor_of_0_gives_0[[]triton-[fs]*", "test_avg_factor_of_0_gives_0[[]triton-*-[ifmd]*",
    "test_minus_infinity_in_*[[]triton-901-*", "test_loss_per_anchor[[]triton-all*", "test_an_*_is_its_values[[]triton-*-stepped]", "test_an_*_is_its_values[[]triton-*-turned]",
    "test_an_*_is_its_values[[]triton-*-expanded]", "test_an_*_is_its_values[[]triton-margin-*",
    "test_an_*_is_its_values[[]triton-contrast-[!t]*", "test_checkpointing_changes_nothing[[]triton-*",
    "test_an_*_is_its_values[[]triton-ids-*", "test_an_*_is_its_values[[]triton-segment-*",
    "test_an_*_is_its_values[[]triton-topk-*", "test_an_*_is_its_values[[]triton-vote-*",
    "test_an_*_is_its_values[[]triton-sample-*",
    "test_values_and_indices[[]triton-1030-*", "test_values_and_indices[[]triton-2-*",
    "test_means_are_those_of_a_loop[[]triton-[!so]*", "test_means_are_those_of_a_loop[[]triton-*-segments]",
    "test_loss_scaling_survives_half_precision[[]triton-*-float32]",
    "test_loss_scaling_survives_half_precision[[]triton-all-*", "test_rows_hardly_apart*[[]triton-*-1]",
    "test_rows_hardly_apart*[[]triton-1e-2[02]-*", "test_non_finite_features_return[[]triton-*inf]",
    "test_loss_and_gradients[[]triton-margin-weights*", "test_loss_per_anchor[[]triton-*-weights]",
    "test_weights_*[[]triton*", "test_*_with_weights[[]triton-[an]*-*", "test_half_precision_with_weights[[]triton-all]",
    "test_compile_with_weights[[]triton]", "test_same_bits_twice[[]triton-*-many-channels]", "test_an_*_is_its_values[[]triton-refine*",
    "test_an_*_is_its_values[[]triton-contrast-two-sets-contrast*",
    "test_an_*_is_its_values[[]triton-contrast-two-sets-anchor_*",
    "test_an_incoming_gradient_is_its_values[[]triton-contrast*", "test_opcheck[[]triton-alone-negatives]",
    "test_margins_and_poison[[]triton-two-sets]", "test_a_nan_row_that_is_ignored*[[]triton-negatives]",
    "test_double_backward_says_what_to_do[[]triton-negatives]", "test_the_loss_is_the_published_one*[[]triton-all]",
    "test_non_finite_features_return[[]triton-negatives-two-sets-*",
    "test_labels_and_scores[[]triton-[fmpqtw]*", "test_labels_and_scores[[]triton-s[ct]*",
    "test_labels_and_scores[[]triton-same-rows]", "test_labels_and_scores[[]triton-corners]",
    "test_labels_and_scores[[]triton-nhwc]", "test_rows_between_two_cells[[]triton-8-*",
    "test_confusion_matrix[[]triton-[cfmpqtw]*", "test_confusion_matrix[[]triton-s[act]*",
    "test_confusion_matrix[[]triton-nhwc]",
    "test_with_pixels[[]triton-ade*",
)  # fmt: skip
NOT_EXECUTED = ("test_opcheck*", "test_compile_*", "test_gradcheck*", "test_the_loss_is_the_published_one*",
                "test_nothing_but_the_gradient_is_larger_than_the_logits*",
                "test_no_shape_depends_on_data_and_nothing_meets_the_host*",
                "test_more_rows_than_a_panel*panels*", "test_more_rows_than_a_panel*of-many*",
                "test_an_*_is_its_values[[]triton-margin-*", "test_an_*_is_its_values[[]triton-contrast-[!t]*")  # fmt: skip


def of_triton(item: pytest.Item) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return "triton" in (params.get("backend"), params.get("name"))


class Sample:
    """Every n-th case of each test of Triton kernels, from the first on."""

    def __init__(self) -> None:
        self.step = int(os.environ.get("METRICSEG_CASES", 6 if backends.interpreting() else 1))
        self.seen = collections.Counter[str]()

    def takes(self, item: pytest.Item) -> bool:
        if not of_triton(item):
            return True
        function = item.nodeid.split("[")[0]
        self.seen[function] += 1
        return (self.seen[function] - 1) % self.step == 0


def selected(item: pytest.Item, on_device: bool) -> bool:
    """Whether this test runs here; True for tests of other backends."""
    if not of_triton(item):
        return True
    params = item.callspec.params
    family = getattr(item.module, "FAMILY", None)
    cases = importlib.import_module(f"{family}_cases") if family in FAMILIES else None
    case = getattr(params.get("case"), "id", None)
    dtype = params.get("dtype", torch.float32)
    if backends.interpreting():
        core = getattr(cases, "INTERPRETED", ())[: 1 if item.originalname in BRIEF else None]
        if case in getattr(item.module, "NAMED", {}) and (case not in core or dtype != torch.float32):
            return False
        if item.originalname not in getattr(cases, "INTERPRETED_TESTS", {item.originalname}):
            return False
        return dtype != torch.bfloat16 and not any(fnmatchcase(item.name, pattern) for pattern in NOT_INTERPRETED)
    if case is not None and dtype != torch.float32 and case not in getattr(cases, "IN_EVERY_DTYPE", {case}):
        return False
    return on_device or not any(fnmatchcase(item.name, pattern) for pattern in NOT_EXECUTED)
