"""What the Triton launchers ask for, compiled for sm_80 and sm_90 without a GPU, against resource budgets.

The launchers run for real, on the shapes below; a stand-in driver names the target, and a launch stops after its
compilation. That needs a process of its own, since the interpreter is chosen when kernels are imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}

# name: (form, A, D, dtype, torch.set_float32_matmul_precision)
CONTRAST_CALLS = {
    "contrast": ("negatives", 32768, 256, "bfloat16", "highest"),
    "contrast-all-tf32": ("all", 262144, 64, "float32", "high"),
    "contrast-margin": ("margin", 262144, 64, "bfloat16", "highest"),
    "contrast-margin-fp32": ("margin", 32768, 256, "float32", "highest"),
}
# name: (what meets the features: "logits", "pull", "soft" or "hard", K, dtype, precision, memory format); 8x512x128x256
CENTERS_CALLS = {
    "centers": ("logits", 150, "bfloat16", "highest", "contiguous_format"),
    "centers-tf32": ("logits", 150, "float32", "high", "contiguous_format"),
    "centers-pull": ("pull", 19, "bfloat16", "highest", "contiguous_format"),
    "centers-pull-fp32": ("pull", 847, "float32", "highest", "channels_last"),
    "class-centers": ("soft", 150, "bfloat16", "highest", "channels_last"),
    "class-means": ("hard", 19, "float32", "high", "contiguous_format"),
}
# name: (op, (B, K, h, w), (H, W), dtype, options)
CALLS = {
    "cityscapes": ("focal", (8, 19, 128, 256), (512, 1024), "bfloat16", {}),
    "cityscapes-fp32": ("focal", (8, 19, 128, 256), (512, 1024), "float32", {"weight": True, "argmax": True}),
    "smoothing": ("focal", (8, 19, 128, 256), (512, 1024), "float32", {"gamma": 0.5, "smoothing": 0.1, "weight": True}),
    "channels-last": ("focal", (8, 19, 128, 256), (512, 1024), "bfloat16", {"channels_last": True}),
    "no-gradient": ("focal", (8, 19, 128, 256), (512, 1024), "bfloat16", {"grad": False, "argmax": True}),
    "no-interpolation": ("focal", (2, 21, 512, 512), (512, 512), "float16", {"gamma": 0.0}),
    "48-classes": ("focal", (4, 48, 128, 128), (512, 512), "bfloat16", {}),
    "ade20k": ("focal", (16, 150, 128, 128), (512, 512), "bfloat16", {}),
    "ade20k-fp32": ("focal", (16, 150, 128, 128), (512, 512), "float32", {"smoothing": 0.1, "weight": True}),
    "float64": ("focal", (2, 19, 33, 65), (513, 1025), "float64", {"align_corners": True}),
    "sigmoid": ("sigmoid", (8, 19, 128, 256), (512, 1024), "bfloat16", {}),
    "sigmoid-150": ("sigmoid", (16, 150, 128, 128), (512, 512), "float32", {}),
    "select": ("select", (1, 1, 1, 1), (512, 512), "float32", {}),
}


def tool() -> Path:
    """The cuobjdump that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@pytest.fixture(scope="module", params=sorted(SHARED_LIMIT))
def compiled(request: pytest.FixtureRequest) -> tuple[int, dict[str, list[dict[str, int]]]]:
    """(capability, what the kernels use that each call launches)."""
    pytest.importorskip("triton")
    if not tool().exists():
        pytest.skip("this Triton brings no cuobjdump")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).parent.parent
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH"))))
    command = [sys.executable, __file__, str(request.param)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("call", [*CALLS, *CONTRAST_CALLS, *CENTERS_CALLS])
def test_kernels_fit_the_device(call: str, compiled: tuple[int, dict[str, list[dict[str, int]]]]) -> None:
    capability, kernels = compiled
    assert kernels[call]
    for kernel in kernels[call]:
        assert kernel["stack"] == 0 and kernel["local"] == 0, f"spills: {kernel}"
        assert kernel["registers"] * 32 * kernel["warps"] <= 65536, f"not one block of it fits: {kernel}"
        assert kernel["shared"] <= SHARED_LIMIT[capability], kernel


@pytest.mark.parametrize("call", [*CONTRAST_CALLS, *CENTERS_CALLS])
def test_products_run_on_tensor_cores(call: str, compiled: tuple[int, dict[str, list[dict[str, int]]]]) -> None:
    capability, kernels = compiled
    dtype, precision = CONTRAST_CALLS[call][3:] if call in CONTRAST_CALLS else CENTERS_CALLS[call][2:4]
    exact = dtype == "float32" and precision == "highest"
    for kernel in kernels[call]:
        if kernel["name"] in ("stats", "gradient", "similarity", "gradients", "spread", "soft_gradient"):
            assert (kernel["wgmma" if capability >= 90 else "mma"] > 0) == (not exact), kernel


def main(capability: int) -> None:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from metricseg_kernels.focal import triton as focal

    class Target:
        """A driver that knows its target and has no device."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    kernels: dict[str, list[dict[str, object]]] = {name: [] for name in (*CALLS, *CONTRAST_CALLS, *CENTERS_CALLS)}
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        usage = resource_usage(kernel.asm["cubin"])
        usage |= {"wgmma": kernel.asm["ptx"].count("wgmma.mma_async"), "mma": kernel.asm["ptx"].count("mma.sync")}
        kernels[name].append(usage | {"name": self.__name__, "phase": kwargs.get("PHASE"), "grid": grid,
                                "warps": kernel.metadata.num_warps, "shared": kernel.metadata.shared})  # fmt: skip

    driver.set_active(Target())
    JITFunction.run = compile_only
    for name, (op, cells, size, dtype_name, options) in CALLS.items():  # noqa: B007 (compile_only reads name)
        dtype = getattr(torch, dtype_name)
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        if op == "select":
            focal.kth_largest_kernel(torch.empty(size, dtype=acc), 100, torch.empty((), dtype=acc))
            continue
        input = torch.empty(cells, dtype=dtype)
        if options.get("channels_last"):
            input = input.contiguous(memory_format=torch.channels_last)
        target = torch.empty((cells[0], *size), dtype=torch.uint8)
        loss, totals = torch.empty((), dtype=acc), torch.empty(5, dtype=torch.float64)
        grad = torch.empty_like(input) if options.get("grad", True) else None
        gamma, align_corners = options.get("gamma", 2.0), options.get("align_corners", False)
        if op == "sigmoid":
            focal.sigmoid_focal_kernel(input, target, None, gamma, 0.25, 255, align_corners, loss, totals, grad)
            continue
        weight = torch.empty(cells[1], dtype=acc) if options.get("weight") else None
        argmax = torch.empty(target.shape, dtype=torch.int32) if options.get("argmax") else None
        focal.focal_kernel(input, target, weight, None, None, gamma, options.get("smoothing", 0.0), 255, align_corners,
                           loss, totals, argmax, grad)  # fmt: skip
    for name, call in CONTRAST_CALLS.items():  # noqa: B007
        compile_contrast(*call)
    for name, call in CENTERS_CALLS.items():  # noqa: B007
        compile_centers(*call)
    print(json.dumps(kernels))


def compile_contrast(form_name: str, rows: int, depth: int, dtype_name: str, precision: str) -> None:
    import torch

    from metricseg_kernels.contrast import triton as contrast
    from metricseg_kernels.contrast.op import COEFFICIENTS, STATS, Form
    from metricseg_kernels.pairwise.rows import Rows

    torch.set_float32_matmul_precision(precision)
    features = torch.zeros((rows, depth), dtype=getattr(torch, dtype_name))
    x = Rows(features, torch.arange(rows), torch.zeros(rows, dtype=torch.int32), None)
    form = Form(form_name, 0.1, 1.0, 1.0, 0.0, 2)
    contrast.contrast_stats_kernel(x, None, form, torch.zeros((rows, STATS)))
    contrast.contrast_grad_kernel(x, None, form, torch.zeros((rows, COEFFICIENTS)), torch.zeros_like(features), None)


def compile_centers(against: str, classes: int, dtype_name: str, precision: str, layout: str) -> None:
    import torch

    from metricseg_kernels.centers import triton as centers

    torch.set_float32_matmul_precision(precision)
    dtype, (batch, channels, height, width) = getattr(torch, dtype_name), (8, 512, 128, 256)
    features = torch.empty((batch, channels, height, width), dtype=dtype, device="meta")
    features = features.contiguous(memory_format=getattr(torch, layout))
    logits = torch.empty((batch, classes, height, width), dtype=dtype, device="meta")
    labels = torch.empty((batch, height, width), dtype=torch.uint8, device="meta")
    pixels, grad = torch.empty_like(labels, dtype=torch.float32), torch.empty_like(features)
    rows, mass = (torch.empty(size, device="meta") for size in ((batch, classes, channels), (batch, classes)))
    if against in ("soft", "hard"):
        assignment, grad_assignment = (logits, logits) if against == "soft" else (labels, None)
        centers.class_sums_kernel(features, assignment, 255, rows, mass)
        centers.class_sums_grad_kernel(rows, mass, features, assignment, 255, grad, grad_assignment)
        return
    shared = rows[:1]
    pull, own = (labels, pixels) if against == "pull" else (None, None)
    centers.similarity_kernel(features, shared, None, pull, "cosine", 15.0, 255, logits, own, pixels)
    centers.similarity_grad_kernel(logits, own, features, shared, pull, pixels, logits, own, "cosine", 15.0, 255, grad,
                                   shared)  # fmt: skip


def resource_usage(cubin: bytes) -> dict[str, int]:
    import re
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([str(tool()), "--dump-resource-usage", file.name], text=True)
    names = {"registers": "REG", "stack": "STACK", "local": "LOCAL"}
    return {name: int(re.search(rf"{key}:(\d+)", text)[1]) for name, key in names.items()}


if __name__ == "__main__":
    main(int(sys.argv[1]))
