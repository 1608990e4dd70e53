"""Whether the extension finds what it launches CUDA kernels with; no device is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metricseg_kernels.core import backends, extension

TORCH_CPU = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


@pytest.fixture
def library() -> Path:
    """The extension, if it has CUDA kernels."""
    if extension.error is not None:
        pytest.skip(extension.error)
    if not torch._C._dispatch_has_kernel_for_dispatch_key("metricseg::focal_kernel", "CUDA"):
        pytest.skip("the extension was built without CUDA kernels")
    library = extension._library()
    assert library is not None
    return library


@pytest.mark.usefixtures("library")
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
def test_finds_the_stream_of_a_torch_with_cuda() -> None:
    assert extension.why_no_kernels("cuda") is None and extension.has_kernels("cuda")
    assert backends.why_not("focal", "cuda", "cuda") is None


def test_without_the_cuda_library_of_torch(library: Path) -> None:
    """As under a torch without CUDA: only torch's CPU library is loaded."""
    script = f"""
import ctypes
ctypes.CDLL({str(TORCH_CPU)!r}, ctypes.RTLD_GLOBAL)
ask = ctypes.CDLL({str(library)!r}).metricseg_why_no_cuda
ask.restype = ctypes.c_char_p
print(ask().decode())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "this torch has no CUDA\n", result.stderr


def test_the_reason_reaches_the_choice_of_backends(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_why_no_cuda", lambda: "this torch has no CUDA")
    assert not extension.has_kernels("cuda") and extension.has_kernels("cpu")
    assert backends.why_not("focal", "cuda", "cuda") == "this torch has no CUDA"
    with pytest.raises(RuntimeError, match="backend 'cuda' can't run here: this torch has no CUDA"):
        backends.choose("focal", torch.device("cuda"), torch.float32, "cuda")


@pytest.mark.parametrize(
    ("built", "device", "runs"),
    [
        ("8.0;9.0", (8, 0), True),
        ("8.0;9.0", (8, 9), True),
        ("8.0;9.0", (9, 0), True),
        ("8.0;9.0", (10, 0), False),
        ("8.0;9.0+PTX", (12, 0), True),
        ("8.0 9.0+PTX", (8, 6), True),
        ("9.0", (8, 0), False),
        ("9.0+PTX", (8, 9), False),
        ("8.6", (8, 0), False),
        ("Hopper", (10, 0), True),
        ("", (10, 0), True),
    ],
)
@pytest.mark.usefixtures("library")
def test_a_device_without_code(
    built: str, device: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel has code for the architectures in its record; on others the next backend takes the call."""
    monkeypatch.setattr(extension, "build_record", lambda: {"cuda_arch_list": built})
    monkeypatch.setattr(extension, "_why_no_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: device)
    backends._unfit.cache_clear()
    reason = backends.why_not("focal", "cuda", "cuda")
    backends._unfit.cache_clear()
    assert (reason is None) == runs
    if not runs:
        assert f"built for {built}, this device is {device[0]}.{device[1]} (build it again" in reason
