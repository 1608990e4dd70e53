"""What only the Triton backend of the centers family cuts up: several tiles of pixels an image, several blocks of K."""

from __future__ import annotations

import launches
import pytest
import torch
from centers_cases import Case, against_reference
from centers_launches import launch_sizes

from benchmarks.harness.memory import FreshProcesses

FAMILY, BACKENDS = "centers", ("triton",)


@pytest.mark.parametrize("job, precision", [("pulled", "highest"), ("soft", "highest"), ("cosine", "high")])
def test_tiles_and_blocks(job: str, precision: str, backend: str, device: str) -> None:
    from metricseg_kernels.engines.pixel_rows.triton import make_launch

    case = Case("cut", (2, 9, 17), 5, 70 if precision == "highest" else 165, "own", "nhwc", label_dtype=torch.uint8)
    torch.set_float32_matmul_precision(precision)
    launch = make_launch(torch.empty((2, 5, 9, 17)), "P", case.classes)
    assert launch.tiles(9 * 17) > 1 and launch.blocks > 1
    # products of tf32 are as good as those of fp16, which has its mantissa
    against_reference(job, case, torch.float32 if precision == "highest" else torch.float16, backend, device)


def test_widths_of_class_blocks() -> None:
    pytest.importorskip("triton")
    from metricseg_kernels.engines.pixel_rows.triton import class_widths

    assert (
        class_widths(150, 128) == (128, 32) and class_widths(150, 64) == (64, 64, 32) and class_widths(1, 64) == (16,)
    )
    for classes in range(1, 161):
        widths = class_widths(classes, 64)
        assert classes <= sum(widths) < classes + 16 and list(widths) == sorted(widths, reverse=True)


# images [B, h, w] whose pixels 16 divides, and others
SIZES = [(8, 128, 256), (4, 96, 96), (2, 64, 128), (3, 72, 100), (16, 32, 32), (1, 48, 80)]
UNALIGNED = [(b, h + 1, w + 1) for b, h, w in SIZES]


@pytest.mark.parametrize("sizes", [SIZES, UNALIGNED], ids=["aligned", "unaligned"])
def test_a_size_or_a_setting_makes_no_new_kernel(
    sizes: list[tuple[int, int, int]], fresh_processes: FreshProcesses
) -> None:
    first, every = (launches.compiled_by(fresh_processes, launch_sizes, few) for few in (sizes[:1], sizes))
    assert first and first == every
