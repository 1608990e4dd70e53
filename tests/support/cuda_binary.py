"""The CUDA kernels in the extension of this checkout, without a device: what each needs on each architecture."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from places import ROOT

from metricseg_kernels.core import extension

LIBRARY = ROOT / "metricseg_kernels" / "_C.so"
ARCHITECTURES = {"sm_80", "sm_90"}
FAMILIES = tuple(sorted(source.parent.name for source in (ROOT / "csrc").glob("*/cuda.cu")))
RESERVED = {"sm_80": 0, "sm_90": 1024}  # bytes of shared memory that the system adds to those of a kernel


class Usage(NamedTuple):
    kernel: str  # its mangled name
    architecture: str
    registers: int
    stack: int  # bytes, what spills included
    shared: int


def find_nvcc() -> str | None:
    homes = (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", "/opt/cuda")
    places = [f"{home}/bin/nvcc" for home in homes if home]
    return next((p for p in places if os.path.exists(p)), shutil.which("nvcc"))


def nvcc_version() -> str:
    """Version of the nvcc that built the extension."""
    command = [f"{extension.build_record()['cuda_home']}/bin/nvcc", "--version"]
    found = re.search(r"release (\d+\.\d+)", subprocess.run(command, capture_output=True, text=True).stdout)
    return found[1] if found else "unknown"


def why_not() -> str | None:
    """Why the kernels can't be read here."""
    record = extension.build_record()
    if not LIBRARY.exists() or record.get("cuda_error", "no record of a build"):
        return f"no CUDA kernels in this checkout ({record.get('cuda_error') or record.get('error')})"
    if not {f"sm_{a.replace('.', '')}" for a in re.findall(r"\d+\.\d", record["cuda_arch_list"])} >= ARCHITECTURES:
        return f"CUDA kernels for {record['cuda_arch_list']} alone"
    return None if find_cuobjdump() else "no cuobjdump, of a toolkit or of Triton"


def find_cuobjdump() -> str | None:
    places = [Path(nvcc).with_name("cuobjdump") for nvcc in [find_nvcc()] if nvcc]
    if (triton := importlib.util.find_spec("triton")) is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump")
    return next((str(p) for p in places if p.exists()), shutil.which("cuobjdump"))


def dump(option: str) -> str:
    command = [str(find_cuobjdump()), option, str(LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache
def usages() -> dict[str, list[Usage]]:
    """Usage of each kernel, by family. A kernel of an engine belongs to the family whose translation unit has it."""
    found: dict[str, list[Usage]] = {family: [] for family in FAMILIES}
    for unit in dump("--dump-resource-usage").split("Fatbin elf code:")[1:]:
        kernels = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) ", unit)
        architecture = re.search(r"^arch = (sm_\d+)$", unit, re.MULTILINE)
        if kernels and architecture:
            names = " ".join(name for name, *_ in kernels)
            (family,) = {family for family in FAMILIES if re.search(rf"metricseg{len(family)}{family}", names)}
            found[family] += [
                Usage(name, architecture[1], int(registers), int(stack), int(shared) - RESERVED[architecture[1]])
                for name, registers, stack, shared in kernels
            ]
    return found
