"""Bad input: a clear error that names the argument and the value, or the documented answer."""

from __future__ import annotations

import re

import pytest
import torch

import metricseg_kernels as mk

FAMILY = "segments"

X = torch.zeros(2, 5, 4, 6)
IDS = torch.zeros(2, 4, 6, dtype=torch.long)
VALID = torch.ones(2, 4, 6, dtype=torch.bool)
AT = torch.zeros(2, 2, 4, 6)
META = torch.device("meta")
kmeans, split, mean = mk.spherical_kmeans, mk.split_by_label, mk.segment_mean

# function, positional arguments, keywords, exception, what the message says
BAD = [
    ("embeddings-rank", kmeans, (X[0],), {}, ValueError, r"embeddings must be \[B, D, h, w\], got shape \(5, 4, 6\)"),
    ("embeddings-integer", kmeans, (X.long(),), {}, TypeError, "embeddings must have dtype.*int64"),
    ("embeddings-list", kmeans, ([0.0],), {}, TypeError, "embeddings must be a Tensor.*list"),
    ("grid-one", kmeans, (X,), {"grid": (5,)}, ValueError, r"grid must be \(rows, columns\), got \(5,\)"),
    ("grid-number", kmeans, (X,), {"grid": 25}, ValueError, r"grid must be \(rows, columns\), got 25"),
    ("grid-zero", kmeans, (X,), {"grid": (5, 0)}, ValueError, "grid must be in.*got 0"),
    ("grid-float", kmeans, (X,), {"grid": (5.0, 5)}, TypeError, "grid must be an int, got float"),
    ("grid-large", kmeans, (X,), {"grid": (257, 256)}, ValueError, r"grid must have at most 65536.*got \(257, 256\)"),
    ("init-alone", kmeans, (X,), {"init": IDS}, ValueError, "num_clusters is needed with init, got None"),
    ("clusters-alone", kmeans, (X,), {"num_clusters": 7}, ValueError, "num_clusters goes with init.*got 7"),
    ("clusters-zero", kmeans, (X,), {"init": IDS, "num_clusters": 0}, ValueError, "num_clusters must be in.*got 0"),
    ("init-shape", kmeans, (X,), {"init": IDS[:1], "num_clusters": 3}, ValueError, r"init must have shape \(2, 4, 6\).*\(1, 4, 6\)"),
    ("init-float", kmeans, (X,), {"init": AT[:, 0], "num_clusters": 3}, TypeError, "init must have dtype.*float32"),
    ("init-size", kmeans, (X,), {"init": IDS, "num_clusters": 3, "size": (8, 12)}, ValueError, r"init must have shape \(2, 8, 12\)"),
    ("iterations", kmeans, (X,), {"iterations": -1}, ValueError, "iterations must be in.*got -1"),
    ("iterations-float", kmeans, (X,), {"iterations": 2.0}, TypeError, "iterations must be an int, got float"),
    ("location-string", kmeans, (X,), {"location": "grid"}, TypeError, "location must be a bool or a Tensor.*str"),
    ("location-none", kmeans, (X,), {"location": None}, TypeError, "location must be a bool or a Tensor.*NoneType"),
    ("location-shape", kmeans, (X,), {"location": AT[:, :1]}, ValueError, r"location must have shape \(2, 2, 4, 6\).*\(2, 1, 4, 6\)"),
    ("location-integer", kmeans, (X,), {"location": AT.long()}, TypeError, "location must have dtype.*int64"),
    ("location-double", kmeans, (X,), {"location": AT.double()}, TypeError, "location is torch.float64, embeddings torch.float32"),
    ("location-device", kmeans, (X,), {"location": AT.to(META)}, ValueError, "location is on meta, embeddings on cpu"),
    ("valid-float", kmeans, (X,), {"valid": AT[:, 0]}, TypeError, "valid must have dtype bool, got float32"),
    ("valid-shape", kmeans, (X,), {"valid": VALID[:, 1:]}, ValueError, r"valid must have shape \(2, 4, 6\).*\(2, 3, 6\)"),
    ("size-one", kmeans, (X,), {"size": 8}, ValueError, r"size must be \(H, W\), got 8"),
    ("size-zero", kmeans, (X,), {"size": (0, 8)}, ValueError, "size must be in.*got 0"),
    ("size-of-nothing", kmeans, (X[:, :, :0],), {"size": (8, 8)}, ValueError, r"embeddings must hold a pixel to.*\(2, 5, 0, 6\)"),
    ("backend", kmeans, (X,), {"backend": "gpu"}, ValueError, "backend must be one of.*'gpu'"),
    ("no-cuda", kmeans, (X,), {"backend": "cuda"}, RuntimeError, "'cuda' can't run here: it runs on cuda tensors, these are on cpu"),
    ("ids-rank", split, (IDS[0], IDS), {"capacity": 4}, ValueError, r"ids must be \[B, h, w\], got shape \(4, 6\)"),
    ("ids-float", split, (AT[:, 0], IDS), {"capacity": 4}, TypeError, "ids must have dtype.*float32"),
    ("labels-float", split, (IDS, AT[:, 0]), {"capacity": 4}, TypeError, "labels must have dtype.*float32"),
    ("labels-shape", split, (IDS, IDS[:1]), {"capacity": 4}, ValueError, r"labels \(1, 4, 6\) and ids \(2, 4, 6\)"),
    ("labels-device", split, (IDS, IDS.to(META)), {"capacity": 4}, ValueError, "labels is on meta, ids on cpu"),
    ("capacity", split, (IDS, IDS), {"capacity": 0}, ValueError, "capacity must be in.*got 0"),
    ("capacity-float", split, (IDS, IDS), {"capacity": 1e3}, TypeError, "capacity must be an int, got float"),
    ("classes", split, (IDS, IDS), {"capacity": 4, "num_classes": 65537}, ValueError, "num_classes must be in.*got 65537"),
    ("ignore-index", split, (IDS, IDS), {"capacity": 4, "ignore_index": "none"}, ValueError, "ignore_index must be an int.*'none'"),
    ("x-rank", mean, (X[0], IDS[0], 3), {}, ValueError, r"x must be \[B, D, h, w\] or \[N, D\], got shape \(5, 4, 6\)"),
    ("x-integer", mean, (X.long(), IDS, 3), {}, TypeError, "x must have dtype.*int64"),
    ("mean-ids-rank", mean, (X, IDS[0], 3), {}, ValueError, r"ids must be \[B, h, w\], got shape \(4, 6\)"),
    ("mean-ids-rows", mean, (X[0, 0], IDS[0], 3), {}, ValueError, r"ids must be \[N\], got shape \(4, 6\)"),
    ("mean-ids-shape", mean, (X, IDS[:, 1:], 3), {}, ValueError, r"ids must have shape \(2, 4, 6\) to go with x, got \(2, 3, 6\)"),
    ("mean-ids-float", mean, (X, AT[:, 0], 3), {}, TypeError, "ids must have dtype.*float32"),
    ("segments", mean, (X, IDS, 0), {}, ValueError, "num_segments must be in.*got 0"),
    ("segments-tensor", mean, (X, IDS, IDS.max()), {}, TypeError, "num_segments must be an int, got Tensor"),
]  # fmt: skip


@pytest.mark.parametrize("function, args, kwargs, error, says", [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_bad_arguments(function, args, kwargs, error, says) -> None:
    with pytest.raises(error, match=says):
        function(*args, **kwargs)


@pytest.mark.parametrize("label", [5, 254, -1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_label_out_of_range(label: int, dtype: torch.dtype, backend: str, device: str, monkeypatch) -> None:
    """On the CPU a ValueError with the value; on CUDA an ignored pixel, and the ValueError with METRICSEG_VALIDATE=1."""
    labels = IDS.to(device, dtype, copy=True)
    labels[0, 0, 0] = labels[1, 3, 5] = label = label % 256 if dtype == torch.uint8 else label
    ignore = 255 if label != 255 else 250
    kwargs = {"capacity": 9, "num_classes": 5, "ignore_index": ignore, "backend": backend}
    says = f"labels holds 2 labels that are neither ignore_index ({ignore}) nor in [0, 5): for example {label}"
    monkeypatch.setenv("METRICSEG_VALIDATE", "1")
    with pytest.raises(ValueError, match=re.escape(says)):
        mk.split_by_label(IDS.to(device), labels, **kwargs)
    if device == "cuda":
        monkeypatch.delenv("METRICSEG_VALIDATE")
        found = mk.split_by_label(IDS.to(device), labels, **kwargs)
        assert found.count == 2 and (found.ids < 0).sum() == 2


@pytest.mark.parametrize("bad", [9, -2, 2**40])
def test_a_number_out_of_range(bad: int, backend: str, device: str, monkeypatch) -> None:
    """On the CPU a ValueError with the value; on CUDA NaN, or a pixel that starts in no cluster."""
    numbers = IDS.to(device, copy=True)
    numbers[1, 2, 3] = bad
    monkeypatch.setenv("METRICSEG_VALIDATE", "1")
    with pytest.raises(ValueError, match=rf"ids must hold -1 or the number of a segment in \[0, 9\), got {bad}"):
        mk.segment_mean(X.to(device), numbers, 9, backend=backend)
    with pytest.raises(ValueError, match=rf"init must hold -1 or the number of a cluster in \[0, 9\), got {bad}"):
        mk.spherical_kmeans(X.to(device), init=numbers, num_clusters=9, backend=backend)
    if device == "cuda":
        monkeypatch.delenv("METRICSEG_VALIDATE")
        assert mk.segment_mean(X.to(device), numbers, 9, backend=backend).isnan().all()
        assert (mk.spherical_kmeans(X.to(device), init=numbers, num_clusters=9, backend=backend) >= 0).all()
