"""Each kernel of a backend once or twice on small input: for compute-sanitizer, and the first thing to run on a device.

    python -m benchmarks.harness.small_cases BACKEND [FAMILY ...]

Results are checked for being finite, and NaN where a label is out of range; tests check their values.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import metricseg_kernels as mk


def check_finite(*tensors: Tensor | None) -> None:
    """Wait for the device, then check losses and gradients."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    assert all(tensor is not None and bool(tensor.isfinite().all()) for tensor in tensors)


def focal_cases(backend: str, device: str) -> None:
    """Upsampling, downsampling and neither; ignored labels, a label out of range."""
    for classes, cells, size, dtype in (
        (19, (9, 13), (36, 52), torch.float32),
        (5, (8, 8), (31, 29), torch.bfloat16),
        (150, (12, 12), (12, 12), torch.float32),
        (3, (33, 17), (9, 8), torch.float16),
    ):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, classes, *cells, generator=generator).to(device, dtype).requires_grad_()
        labels = torch.randint(classes, (2, *size), generator=generator).to(device, torch.uint8)
        labels[:, 0, :2] = 255
        weight = torch.linspace(0.5, 1.5, classes, device=device)
        losses = [
            mk.focal_loss(x, labels, backend=backend),
            mk.cross_entropy(x, labels, weight=weight, label_smoothing=0.1, align_corners=True, backend=backend),
            mk.focal_loss(x, labels, reduction="none", return_stats=True, backend=backend)[0].mean(),
            mk.sigmoid_focal_loss(x, labels, backend=backend),
            mk.ohem_cross_entropy(x, labels, min_kept=20, backend=backend),
        ]
        sum(losses).backward()
        check_finite(*losses, x.grad)
        if device == "cuda":  # on the CPU it is an error
            labels[0, 0, 5] = 200
            assert bool(mk.focal_loss(x, labels, backend=backend).isnan())
        print(f"{backend} focal {tuple(x.shape)} to {size} {dtype}: done", flush=True)


def contrast_cases(backend: str, device: str) -> None:
    """A set with itself and two sets, no size a multiple of a tile, ignored rows, ids, odd strides."""
    for rows, columns, dim, dtype in ((150, None, 20, torch.float32), (131, 77, 64, torch.bfloat16)):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2 * rows, dim, generator=generator).to(device, dtype)[::2].requires_grad_()
        labels = torch.randint(-1, 4, (rows,), generator=generator).to(device)
        sets: list[Any] = [x, labels, None, None]
        ids = {"anchor_ids": torch.arange(rows, device=device)}
        if columns is not None:
            y = torch.randn(columns, dim, generator=generator).to(device, dtype).requires_grad_()
            sets[2:] = y, torch.randint(-1, 4, (columns,), generator=generator).to(device)
            ids["contrast_ids"] = torch.arange(columns, device=device)
        losses = [
            mk.pixel_contrast_loss(*sets, backend=backend),
            mk.pixel_contrast_loss(*sets, denominator="all", reduction="none", backend=backend, **ids).mean(),
            mk.margin_contrast_loss(*sets, margin=9.0, backend=backend),
        ]
        sum(losses).backward()
        check_finite(*losses, x.grad)
        print(f"{backend} contrast {rows} x {columns or rows} x {dim} {dtype}: done", flush=True)


def centers_cases(backend: str, device: str) -> None:
    """No size a multiple of a tile, shared centers and each image's own, labels out of range, odd strides."""
    for channels, classes, own, dtype, layout in (
        (37, 19, False, torch.float32, torch.contiguous_format),
        (64, 150, True, torch.bfloat16, torch.channels_last),
        (5, 847, False, torch.float16, torch.contiguous_format),
    ):
        generator = torch.Generator().manual_seed(0)
        sizes = (2, channels, 11, 26), (2, classes, 11, 13), (*(2,) * own, classes, channels)
        x, z, w = (torch.randn(size, generator=generator).to(device, dtype) for size in sizes)
        x = x[..., ::2] if layout == torch.contiguous_format else x[..., :13].contiguous(memory_format=layout)
        x, z, w = (t.requires_grad_() for t in (x, z, w))
        labels = torch.randint(classes, (2, 11, 13), generator=generator).to(device, torch.int32)
        labels[:, 0, :3] = 255
        kwargs = {"num_classes": classes, "return_present": True, "backend": backend}
        logits, pull = mk.center_similarity(x, w, pull_labels=labels, backend=backend)
        far = mk.center_similarity(x, w, metric="euclidean", scale=0.1, backend=backend)
        (soft, _), (hard, present) = (mk.class_centers(x, a, **kwargs) for a in (z, labels))
        loss = sum(t.float().mean() for t in (logits, far, soft, hard)) + pull + mk.center_push(hard, present)
        loss.backward()
        check_finite(loss, x.grad, z.grad, w.grad)
        if device == "cuda":  # on the CPU it is an error
            labels[0, 1, 1] = 2**30  # the pull is NaN, and so are the centers of its image
            assert bool(mk.center_pull(x, w, labels, backend=backend).isnan())
            hard = mk.class_centers(x, labels, **kwargs)[0]
            assert bool(hard[0].isnan().all() and hard[1].isfinite().all())
        print(f"{backend} centers {channels} x {classes} {dtype}: done", flush=True)


def anchors_cases(backend: str, device: str) -> None:
    """Every strategy, more slots than samples, labels and indices out of range, a pixel twice, odd strides."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (3, 19, 46), generator=generator).to(device)[..., ::2]
    labels[0, 0, :3] = 255
    if device == "cuda":  # on the CPU it is an error
        labels[1, 2, 3] = 2**40
    predictions = torch.randint(5, labels.shape, generator=generator).to(device)
    confidence = torch.rand(labels.shape, generator=generator).to(device)
    for strategy, samples in (("hard", 200), ("random", 7), ("semi_hard", 200), ("boundary", 31)):
        kwargs = {"strategy": strategy, "max_samples": samples, "max_views": 20, "seed": 1, "backend": backend}
        index, sampled, count = mk.sample_anchors(labels, predictions, confidence=confidence, **kwargs)
        used = index[: int(count)]
        assert count > 0 and bool((labels.flatten()[used] == sampled[: int(count)]).all())
        for dtype, layout in ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)):
            x = torch.randn(3, 37, 19, 23, generator=generator).to(device, dtype, memory_format=layout).requires_grad_()
            bad = [-2, 2**50] if device == "cuda" else []
            pixels = torch.cat([index, index[:5], index.new_tensor([-1, *bad])])
            rows = mk.gather_pixels(x, pixels, backend=backend)
            rows.sum().backward()
            good = len(rows) - len(bad)
            check_finite(rows[:good], x.grad)
            assert bool(rows[good:].isnan().all())
        print(f"{backend} anchors {strategy}: done", flush=True)


CASES: dict[str, Callable[[str, str], None]] = {
    "anchors": anchors_cases,
    "centers": centers_cases,
    "contrast": contrast_cases,
    "focal": focal_cases,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend")
    parser.add_argument("families", nargs="*", metavar="FAMILY", default=list(CASES))
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for family in arguments.families:
        CASES[family](arguments.backend, arguments.device)


if __name__ == "__main__":
    main()
