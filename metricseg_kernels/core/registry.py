"""One record for each op family, read by the backend choice, tests, benchmarks and install reports."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Family:
    """An op family and its backends.

    Args:
        cpu, cuda: backends of tensors on that device; the first one that can run takes a call.
        evidence: the measurement behind the order, or the argument for it until a device measures it.
        kernels: functions that each backend's module has, and how many inputs each takes before its outputs.
        gpu_seconds: of the family's tests on all of 16 cores, and of its benchmark, on an H200 (`make gpu`).
    """

    cpu: tuple[str, ...]
    cuda: tuple[str, ...]
    evidence: str
    kernels: dict[str, int]
    gpu_seconds: tuple[int, int]

    @cached_property
    def backends(self) -> tuple[str, ...]:
        """All backends, "reference" first."""
        return tuple(dict.fromkeys(("reference", *self.cpu, *self.cuda)))


FAMILIES = {
    "anchors": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/anchors.json; h200/anchors.json: cuda is ahead of the reference in every row. "
        "triton, not timed on a device, has cuda's algorithm and launches.",
        kernels={"sample_anchors_kernel": 1, "gather_pixels_fwd_kernel": 4, "gather_pixels_bwd_kernel": 7},
        gpu_seconds=(12, 22),
    ),
    "centers": Family(
        cpu=("cpu", "reference"),
        cuda=("triton", "cuda", "reference"),
        evidence="benchmarks/results/cpu/centers.json; h200/centers.json: triton is behind eager at exact fp32 with "
        "K = 150, at K = 847, for soft centers with K = 19, and on small maps. cuda, not timed on a device, takes the "
        "same operations on mma.sync, not wgmma.",
        kernels={
            "similarity_fwd_kernel": 1, "similarity_bwd_kernel": 1,
            "pull_fwd_kernel": 4, "class_means_fwd_kernel": 4, "class_means_bwd_kernel": 6,
            "fold_centers_fwd_kernel": 3, "fold_centers_bwd_kernel": 5,
        },
        gpu_seconds=(38, 30),
    ),
    "focal": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/focal.json; h200/focal.json: cuda is ahead of triton but in sigmoid_focal.",
        kernels={"focal_kernel": 10, "sigmoid_focal_kernel": 7, "kth_largest_kernel": 3},
        gpu_seconds=(39, 50),
    ),
    "contrast": Family(
        cpu=("cpu", "reference"),
        cuda=("triton", "cuda", "reference"),
        evidence="benchmarks/results/cpu/contrast.json; h200/contrast.json: triton is behind eager below 16,384 rows "
        "and against a bank. cuda, not run on a device, makes as few launches with less work of the host, but its "
        "products reach two thirds of those that triton has on sm_90.",
        kernels={
            "prototype_sets_kernel": 4, "sort_rows_kernel": 2,
            "contrast_fwd_kernel": 4, "contrast_bwd_kernel": 5, "contrast_mean_kernel": 4,
        },
        gpu_seconds=(91, 41),
    ),
    "predict": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/predict.json, ahead in every row. On CUDA, not timed on a device: the "
        "reference writes and reads the logits of every map at label size; cuda does triton's operations with less "
        "work of the host, and sums the counts of several tiles before it adds them to those of other blocks.",
        kernels={"predict_kernel": 1, "confusion_kernel": 3},
        gpu_seconds=(5, 8),
    ),
    "refine": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/refine.json, ahead in every row. On CUDA, not timed on a device: in the sm_90 "
        "code cuda takes a third of triton's instructions forward, a fourth for offsets, and sorts no pixels; the "
        "reference materializes nine times the output.",
        kernels={"refine_fwd_kernel": 1, "refine_bwd_kernel": 2},
        gpu_seconds=(3, 7),
    ),
    "region": Family(
        cpu=("cpu", "reference"),
        cuda=("reference",),
        evidence="benchmarks/results/cpu/region.json. On CUDA there are no kernels yet.",
        kernels={"region_fwd_kernel": 1, "region_bwd_kernel": 3},
        gpu_seconds=(3, 3),
    ),
    "retrieval": Family(
        cpu=("cpu", "reference"),
        cuda=("triton", "cuda", "reference"),
        evidence="benchmarks/results/cpu/retrieval.json; h200/retrieval.json: triton is 4.2 times as fast as the "
        "reference. cuda, not timed on a device, takes fewer operations at k up to 32, but inserts more slowly beyond.",
        kernels={"topk_kernel": 3},
        gpu_seconds=(3, 12),
    ),
    "segments": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/segments.json; h200/segments.json: triton is ahead of the reference but in "
        "segment_mean. cuda by bytes, not timed on a device: k-means reads the map once an iteration, not twice; "
        "segment_mean once, not once for 64 segments; split_by_label sorts no pixels.",
        kernels={
            "spherical_kmeans_kernel": 1, "split_by_label_kernel": 4,
            "segment_sums_fwd_kernel": 2, "segment_sums_bwd_kernel": 2,
        },
        gpu_seconds=(16, 20),
    ),
}  # fmt: skip
