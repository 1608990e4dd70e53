"""Bad input: a clear error that names the argument and the value, or the documented answer."""

from __future__ import annotations

import re

import pytest
import torch

import metricseg_kernels as mk

FAMILY = "anchors"

LABELS = torch.zeros(2, 4, 6, dtype=torch.long)
SCORES = torch.zeros(2, 4, 6)
FEATURES = torch.zeros(2, 5, 4, 6)
INDEX = torch.zeros(7, dtype=torch.long)
META = torch.device("meta")

# function, positional arguments, keywords, exception, what the message says
BAD = [
    ("labels-rank", mk.sample_anchors, (LABELS[0], LABELS), {}, ValueError, r"labels must be \[B, h, w\], got shape \(4, 6\)"),
    ("labels-float", mk.sample_anchors, (SCORES, LABELS), {}, TypeError, "labels must have dtype.*got float32"),
    ("labels-list", mk.sample_anchors, ([[[0]]], LABELS), {}, TypeError, "labels must be a Tensor.*list"),
    ("predictions-missing", mk.sample_anchors, (LABELS,), {}, ValueError, "'hard' needs predictions, got None"),
    ("predictions-shape", mk.sample_anchors, (LABELS, LABELS[:1]), {}, ValueError, r"predictions \(1, 4, 6\).*\(2, 4, 6\)"),
    ("predictions-logits", mk.sample_anchors, (LABELS, FEATURES), {}, ValueError, r"predictions must be.*\(2, 5, 4, 6\)"),
    ("predictions-float", mk.sample_anchors, (LABELS, SCORES), {}, TypeError, "predictions must have dtype.*float32"),
    ("predictions-device", mk.sample_anchors, (LABELS, LABELS.to(META)), {}, ValueError, "predictions is on meta, labels on cpu"),
    ("strategy", mk.sample_anchors, (LABELS, LABELS), {"strategy": "easy"}, ValueError, "strategy must be one of.*'easy'"),
    ("confidence-missing", mk.sample_anchors, (LABELS, LABELS), {"strategy": "semi_hard"}, ValueError, "'semi_hard' needs confidence"),
    ("confidence-shape", mk.sample_anchors, (LABELS, LABELS), {"confidence": SCORES[..., 1:]}, ValueError, r"confidence \(2, 4, 5\)"),
    ("confidence-integer", mk.sample_anchors, (LABELS, LABELS), {"confidence": LABELS}, TypeError, "confidence must have dtype.*int64"),
    ("max-samples", mk.sample_anchors, (LABELS, LABELS), {"max_samples": 0}, ValueError, "max_samples must be in.*got 0"),
    ("max-samples-float", mk.sample_anchors, (LABELS, LABELS), {"max_samples": 1e3}, TypeError, "max_samples must be an int, got float"),
    ("max-views", mk.sample_anchors, (LABELS, LABELS), {"max_views": -1}, ValueError, "max_views must be in.*got -1"),
    ("min-pixels", mk.sample_anchors, (LABELS, LABELS), {"min_pixels": -1}, ValueError, "min_pixels must be in.*got -1"),
    ("radius", mk.sample_anchors, (LABELS, LABELS), {"radius": 0}, ValueError, "radius must be in.*got 0"),
    ("threshold", mk.sample_anchors, (LABELS, LABELS), {"threshold": float("nan")}, ValueError, "threshold must be finite.*got nan"),
    ("num-classes", mk.sample_anchors, (LABELS, LABELS), {"num_classes": 0}, ValueError, "num_classes must be in.*got 0"),
    ("num-classes-large", mk.sample_anchors, (LABELS, LABELS), {"num_classes": 65537}, ValueError, "num_classes.*got 65537"),
    ("seed-float", mk.sample_anchors, (LABELS, LABELS), {"seed": 0.5}, TypeError, "seed must be an int, got float"),
    ("seed-large", mk.sample_anchors, (LABELS, LABELS), {"seed": 2**63}, ValueError, f"seed must be in.*got {2**63}"),
    ("seed-rank", mk.sample_anchors, (LABELS, LABELS), {"seed": INDEX}, ValueError, r"seed must be \[\], got shape \(7,\)"),
    ("seed-dtype", mk.sample_anchors, (LABELS, LABELS), {"seed": torch.tensor(1.0)}, TypeError, "seed must have dtype.*float32"),
    ("seed-device", mk.sample_anchors, (LABELS, LABELS), {"seed": INDEX[0].to(META)}, ValueError, "seed is on meta, labels on cpu"),
    ("backend", mk.sample_anchors, (LABELS, LABELS), {"backend": "gpu"}, ValueError, "backend must be one of.*'gpu'"),
    ("features-rank", mk.gather_pixels, (FEATURES[0], INDEX), {}, ValueError, r"features must be \[B, C, h, w\], got shape \(5, 4, 6\)"),
    ("features-integer", mk.gather_pixels, (FEATURES.long(), INDEX), {}, TypeError, "features must have dtype.*int64"),
    ("index-rank", mk.gather_pixels, (FEATURES, INDEX[None]), {}, ValueError, r"index must be \[S\], got shape \(1, 7\)"),
    ("index-int32", mk.gather_pixels, (FEATURES, INDEX.int()), {}, TypeError, "index must have dtype int64, got int32"),
    ("index-anchors", mk.gather_pixels, (FEATURES, (INDEX, INDEX, 7)), {}, TypeError, "index must be a Tensor.*tuple"),
    ("index-device", mk.gather_pixels, (FEATURES, INDEX.to(META)), {}, ValueError, "index is on meta, features on cpu"),
    ("eps-zero", mk.gather_pixels, (FEATURES, INDEX), {"eps": 0.0}, ValueError, "eps must be > 0, got 0"),
    ("eps-negative", mk.gather_pixels, (FEATURES, INDEX), {"eps": -1.0}, ValueError, "eps.*got -1.0"),
    ("eps-nan", mk.gather_pixels, (FEATURES, INDEX), {"eps": float("nan")}, ValueError, "eps.*got nan"),
]  # fmt: skip


@pytest.mark.parametrize("function, args, kwargs, error, says", [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_bad_arguments(function, args, kwargs, error, says) -> None:
    with pytest.raises(error, match=says):
        function(*args, **kwargs)


@pytest.mark.parametrize("label", [5, 254, -1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_label_out_of_range(label: int, dtype: torch.dtype, backend: str, device: str, monkeypatch) -> None:
    """On the CPU a ValueError with the value; on CUDA an ignored pixel, and the ValueError with METRICSEG_VALIDATE=1."""
    labels = LABELS.to(device, dtype)
    labels[0, 0, 0] = labels[1, 3, 5] = label = label % 256 if dtype == torch.uint8 else label
    ignore = 255 if label != 255 else 250
    kwargs = {"num_classes": 5, "min_pixels": 0, "strategy": "random", "ignore_index": ignore, "backend": backend}
    says = f"labels holds 2 labels that are neither ignore_index ({ignore}) nor in [0, 5): for example {label}"
    monkeypatch.setenv("METRICSEG_VALIDATE", "1")
    with pytest.raises(ValueError, match=re.escape(says)):
        mk.sample_anchors(labels, **kwargs)
    if device == "cuda":
        monkeypatch.delenv("METRICSEG_VALIDATE")
        index, sampled, count = mk.sample_anchors(labels, **kwargs)
        assert count == 46 and not sampled[:46].any() and not {0, 47} & set(index.tolist())
