"""One record for each op family, read by the backend choice, tests, benchmarks and install reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Family:
    """An op family and its backends.

    Args:
        cpu, cuda: backends of tensors on that device; the first one that can run takes a call.
        cuda_but: orders that differ: of "exact" input (float64, and float32 with matmul precision "highest"), and of
            ops by name.
        volumes: backends that take volumes, [B, K, d, h, w], if some of the family's ops do.
        evidence: the measurement behind the order. On CUDA the time on the device decides: in training the host's work
            hides behind the device's, as long as the device has enough.
        kernels: functions that each backend's module has, and how many inputs each takes before its outputs.
        gpu_seconds: of the family's tests on all of 16 cores, and of its benchmark, on an H200 (`make gpu`).
    """

    cpu: tuple[str, ...]
    cuda: tuple[str, ...]
    evidence: str
    kernels: dict[str, int]
    gpu_seconds: tuple[int, int]
    cuda_but: dict[str, tuple[str, ...]] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()

    @cached_property
    def backends(self) -> tuple[str, ...]:
        """All backends, "reference" first."""
        return tuple(dict.fromkeys(("reference", *self.cpu, *self.cuda)))


FAMILIES = {
    "anchors": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/anchors.json; h200/anchors.json: cuda takes 0.62 to 0.89 of triton's time in "
        "sampling, 0.90 to 1.02 in gathering.",
        kernels={"sample_anchors_kernel": 1, "gather_pixels_fwd_kernel": 4, "gather_pixels_bwd_kernel": 7},
        gpu_seconds=(8, 30),
    ),
    "centers": Family(
        cpu=("cpu", "reference"),
        cuda=("triton", "cuda", "reference"),
        cuda_but={"exact": ("cuda", "triton", "reference")},
        evidence="benchmarks/results/cpu/centers.json; h200/centers.json: triton takes 0.44 to 0.74 of cuda's time on "
        "the device in bf16 and tf32, but more time of the host; cuda takes 0.37 to 0.64 of triton's at exact fp32.",
        kernels={
            "similarity_fwd_kernel": 1, "similarity_bwd_kernel": 1,
            "pull_fwd_kernel": 4, "class_means_fwd_kernel": 4, "class_means_bwd_kernel": 6,
            "fold_centers_fwd_kernel": 3, "fold_centers_bwd_kernel": 5,
        },
        gpu_seconds=(30, 50),
    ),
    "focal": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        cuda_but={"sigmoid_focal": ("triton", "cuda", "reference")},
        evidence="benchmarks/results/cpu/focal.json; h200/focal.json: on the device cuda takes 0.54 to 0.64 of "
        "triton's time with 150 classes on small logits, up to 1.7 times as long with 19, with less work of the host. "
        "In sigmoid_focal triton takes 0.43 to 0.77 of cuda's.",
        kernels={"focal_kernel": 10, "sigmoid_focal_kernel": 7, "kth_largest_kernel": 3},
        gpu_seconds=(40, 70),
        volumes=("reference", "cpu"),
    ),
    "contrast": Family(
        cpu=("cpu", "reference"),
        cuda=("triton", "cuda", "reference"),
        cuda_but={"exact": ("cuda", "triton", "reference")},
        evidence="benchmarks/results/cpu/contrast.json; h200/contrast.json: triton takes 0.20 to 0.41 of cuda's time "
        "on the device in bf16, 0.31 to 0.81 in tf32; cuda takes 0.61 to 0.76 of triton's at exact "
        "fp32, 1.06 in forward against a bank.",
        kernels={
            "prototype_sets_kernel": 4, "sort_rows_kernel": 2,
            "contrast_fwd_kernel": 4, "contrast_bwd_kernel": 5, "contrast_mean_kernel": 4,
        },
        gpu_seconds=(91, 60),
    ),
    "distill": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/distill.json; h200/distill.json: cuda takes 0.55 to 0.82 of triton's time on "
        "the device, at label size 1.0 to 1.4.",
        kernels={"distill_kernel": 10},
        gpu_seconds=(190, 65),
    ),
    "lovasz": Family(
        cpu=("cpu", "reference"),
        cuda=("triton", "reference"),
        evidence="benchmarks/results/cpu/lovasz.json; there is no cuda yet.",
        kernels={"lovasz_fwd_kernel": 1, "lovasz_bwd_kernel": 2},
        gpu_seconds=(16, 20),  # estimates
    ),
    "predict": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/predict.json; h200/predict.json: cuda takes 0.20 to 0.84 of triton's time on "
        "the device, but of noise in one map 1.0 to 1.3 of it.",
        kernels={"predict_kernel": 1, "confusion_kernel": 3},
        gpu_seconds=(12, 30),
        volumes=("reference", "cpu"),
    ),
    "refine": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/refine.json; h200/refine.json: cuda takes 0.21 to 0.32 of triton's time.",
        kernels={"refine_fwd_kernel": 1, "refine_bwd_kernel": 2},
        gpu_seconds=(6, 16),
    ),
    "region": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/region.json; h200/region.json: with 150 classes cuda takes 0.50 to 0.69 of "
        "triton's time on the device, with 19 classes 1.0 to 1.3.",
        kernels={"region_fwd_kernel": 1, "region_bwd_kernel": 3},
        gpu_seconds=(64, 110),
        volumes=("reference", "cpu"),
    ),
    "retrieval": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/retrieval.json; h200/retrieval.json: cuda takes 0.64 of triton's time.",
        kernels={"topk_kernel": 3},
        gpu_seconds=(3, 14),
    ),
    "segments": Family(
        cpu=("cpu", "reference"),
        cuda=("cuda", "triton", "reference"),
        evidence="benchmarks/results/cpu/segments.json; h200/segments.json: cuda takes 0.05 to 0.31 of triton's time.",
        kernels={
            "spherical_kmeans_kernel": 1, "split_by_label_kernel": 4,
            "segment_sums_fwd_kernel": 2, "segment_sums_bwd_kernel": 2,
        },
        gpu_seconds=(16, 24),
    ),
}  # fmt: skip
