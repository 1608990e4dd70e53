"""`metricseg doctor`: the install, what goes with it, and a test of every op on the devices of this machine.

Each op runs on every backend that can run here, and is compared with `reference`, gradients included. It takes seconds.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.__main__ import report
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

HOSTS = (
    "segmentation-models-pytorch", "torchvision", "transformers", "mmsegmentation", "pytorch-metric-learning",
    "lightning", "accelerate", "torchmetrics", "timm", "faiss-cpu",
)  # fmt: skip
TOLERANCE = 1e-3  # relative L2 error of a result or gradient in float32
Call = Callable[[str, str], list[Tensor]]


def _numbers(device: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=generator).to(device).requires_grad_()


def _classes(device: str, *shape: int, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(count, shape, generator=generator).to(device)


def _graded(outputs: list[Tensor], *leaves: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of the sum of those that have one."""
    total = torch.stack([o.double().sum() for o in outputs if o.requires_grad]).sum()
    return [*outputs, *torch.autograd.grad(total, leaves)]


def focal(device: str, backend: str) -> list[Tensor]:
    """The four losses of pixels."""
    logits, target = _numbers(device, 2, 5, 9, 13), _classes(device, 2, 33, 50)
    losses = [
        mk.cross_entropy(logits, target, backend=backend),
        mk.focal_loss(logits, target, backend=backend),
        mk.sigmoid_focal_loss(logits, target, backend=backend),
        mk.ohem_cross_entropy(logits, target, min_kept=100, backend=backend),
    ]
    return _graded(losses, logits)


def contrast(device: str, backend: str) -> list[Tensor]:
    """Both losses of pairs, and that of prototypes."""
    rows, labels = _numbers(device, 90, 24), _classes(device, 90)
    unit = F.normalize(rows, dim=1)
    losses = [
        mk.pixel_contrast_loss(unit, labels, backend=backend),
        mk.margin_contrast_loss(unit, labels, backend=backend),
        mk.prototype_nca_loss(unit, labels, labels, unit[:40], labels[:40], backend=backend),
    ]
    return _graded(losses, rows)


def anchors(device: str, backend: str) -> list[Tensor]:
    """Sampled pixels, and their rows."""
    labels, predicted = _classes(device, 2, 15, 21), _classes(device, 2, 15, 22)[..., :21]
    found = mk.sample_anchors(labels, predicted, seed=torch.tensor(1, device=device), backend=backend)
    features = _numbers(device, 2, 8, 15, 21)
    return _graded([found.index, mk.gather_pixels(features, found.index, backend=backend)], features)


def centers(device: str, backend: str) -> list[Tensor]:
    """Class means by logits and by labels, and similarities."""
    features, logits, labels = _numbers(device, 2, 8, 9, 13), _numbers(device, 2, 5, 9, 13), _classes(device, 2, 9, 13)
    soft = mk.class_centers(features, logits, backend=backend)
    hard = mk.class_centers(features, labels, num_classes=5, backend=backend)
    similar = mk.center_similarity(features, soft, pull_labels=labels, backend=backend)
    return _graded([soft, hard, *similar], features, logits)


def segments(device: str, backend: str) -> list[Tensor]:
    """Clusters, their segments by label, and the segments' means."""
    features, labels = _numbers(device, 1, 8, 20, 24), _classes(device, 1, 20, 24)
    clusters = mk.spherical_kmeans(features.detach(), grid=(3, 3), iterations=3, backend=backend)
    split = mk.split_by_label(clusters, labels, capacity=60, backend=backend)
    means = mk.segment_mean(features.flatten(2)[0].T, labels.flatten(), 5, backend=backend)
    return _graded([clusters, *split, means], features)


def retrieval(device: str, backend: str) -> list[Tensor]:
    """The nearest rows of a bank."""
    queries, bank = _numbers(device, 20, 8).detach(), _numbers(device, 200, 8).detach()
    return list(mk.topk_similarity(queries, bank, 5, backend=backend))


def refine(device: str, backend: str) -> list[Tensor]:
    """Upsampling at offsets from neighbors."""
    features, offsets, neighbors = (
        _numbers(device, 1, 6, 5, 7), _numbers(device, 1, 2, 20, 28), _numbers(device, 1, 9, 20, 28)
    )  # fmt: skip
    return _graded([mk.refine_upsample(features, offsets, neighbors, backend=backend)], features, offsets, neighbors)


def predict(device: str, backend: str) -> list[Tensor]:
    """Confidence of the labels of two maps, and their counts."""
    maps, target = [_numbers(device, 1, 5, 6, 8), _numbers(device, 1, 5, 9, 12)], _classes(device, 1, 24, 32)
    confidence = mk.predict_labels(maps, (24, 32), return_confidence=True, backend=backend)[1]
    return [confidence, mk.confusion_matrix(maps, target, backend=backend)]


def region(device: str, backend: str) -> list[Tensor]:
    """Dice with cross-entropy and with focal loss, and Tversky of overlapping classes."""
    logits, target = _numbers(device, 2, 5, 6, 8), _classes(device, 2, 24, 32)
    losses = [
        mk.cross_entropy_dice(logits, target, backend=backend),
        mk.focal_dice(logits, target, backend=backend),
        mk.region_loss(logits, target, form="tversky", activation="sigmoid", per_image=True, backend=backend),
    ]
    return _graded(losses, logits)


def lovasz(device: str, backend: str) -> list[Tensor]:
    """The loss of a batch, and of its images."""
    logits, target = 4 * _numbers(device, 2, 5, 6, 8), _classes(device, 2, 24, 32)
    return _graded(
        [mk.lovasz_loss(logits, target, bins=8, per_image=p, backend=backend) for p in (False, True)], logits
    )


def distill(device: str, backend: str) -> list[Tensor]:
    """The three divergences, of maps of two resolutions."""
    student, teacher, target = _numbers(device, 2, 5, 6, 8), _numbers(device, 2, 5, 4, 5), _classes(device, 2, 24, 32)
    losses = [
        mk.distillation_loss(student, teacher, target, kind=kind, temperature=2.0, ignore_index=0, backend=backend)
        for kind in ("kl", "reverse_kl", "js")
    ]
    return _graded(losses, student, teacher)


TESTS: dict[str, Call] = {
    test.__name__: test
    for test in (anchors, centers, contrast, distill, focal, lovasz, predict, refine, region, retrieval, segments)
}


def failures(family: str, device: str, backend: str) -> str | None:
    """None if a backend agrees with the reference, else what differs."""
    try:
        found, expected = (TESTS[family](device, name) for name in (backend, "reference"))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for i, (ours, truth) in enumerate(zip(found, expected, strict=True)):
        ours, truth = ours.detach().double(), truth.detach().double()
        error = float((ours - truth).norm() / truth.norm().clamp(min=1e-12))
        if not error <= TOLERANCE:
            return f"result {i} is off the reference by {error:.1e} (relative L2; may be {TOLERANCE:g})"
    return None


def run_tests() -> Iterator[tuple[str, bool]]:
    """(a line, whether all is well) for every family, device and backend that can run."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for family, record in FAMILIES.items():
            for backend in getattr(record, device):
                if backend == "reference" or backends.why_not(family, backend, device, torch.float32):
                    continue
                start = time.perf_counter()
                wrong = failures(family, device, backend)
                seconds = time.perf_counter() - start
                yield f"  {device:<5}{family:<10}{backend:<8}{wrong or f'ok, {seconds:.2f} s'}", wrong is None


def extras() -> Iterator[str]:
    """A line for each extra: what of it is missing."""
    try:
        required = metadata.requires("metricseg") or []
    except metadata.PackageNotFoundError:
        yield "  unknown: metricseg is not installed, but on the path"
        return
    names: dict[str, list[str]] = {}
    for line in required:
        if found := re.match(r"([\w.-]+)(?:\[.*\])?.*extra == ['\"](\w+)['\"]", line):
            names.setdefault(found[2], []).append(found[1])
    for extra, packages in names.items():
        missing = [p for p in packages if p != "metricseg" and version(p) is None]
        yield f"  {extra:<14}{'complete' if not missing else 'missing: ' + ', '.join(missing)}"


def version(package: str) -> str | None:
    """The installed version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Print all of it; the exit status is 1 if an op is wrong."""
    print(report(), "\nextras:", *extras(), "\nother packages that the losses are used with:", sep="\n")
    for package in HOSTS:
        print(f"  {package:<30}{version(package) or 'not installed'}")
    print("\nevery op against its reference, in float32:", flush=True)
    right = []
    for line, well in run_tests():
        print(line, flush=True)
        right.append(well)
    print(f"\n{len(right) - sum(right)} of {len(right)} failed" if not all(right) else f"\nall {len(right)} passed")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
