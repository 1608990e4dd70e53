"""The kernel package in the layout of Hugging Face's `kernels`, from the same sources.

    python hub/lay_out.py sources DIR    a project for kernel-builder: build.toml, flake.nix, torch-ext, csrc
    python hub/lay_out.py built DIR      what this machine's compilers build of it: DIR/build/<variant>

Several versions of a kernel load in one process, so that each build has an op library of its own. Its name takes the
place of `metricseg` in two files, metricseg_kernels/core/names.py and csrc/common/host/library.h.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "metricseg-kernels"
PACKAGE = "metricseg_kernels"
VERSION = 0  # the hub's number for an interface that still changes
LICENSE = "apache-2.0"
TORCH = "2.10"  # of the stable ABI
CXX_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]  # as in setup.py
BUILT = ("_C*", "_build.json", "__pycache__", "__main__.py")  # the last one imports the package by its name

NAMES = '''"""Names of this build."""

from .._ops import ops

NAMESPACE = EXTENSION = ops.name
'''
OPS = """import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{id}::{{op_name}}"
"""
BINDING = """// Makes the extension a module that Python imports; registration.h comes from kernel-builder.
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
"""
FLAKE = """{
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder, ... }:
    kernel-builder.lib.genKernelFlakeOutputs { inherit self; path = ./.; };
}
"""


def copy_python(folder: Path) -> None:
    """The package, with the names of the build in place of its own."""
    shutil.copytree(ROOT / PACKAGE, folder, ignore=shutil.ignore_patterns(*BUILT), dirs_exist_ok=True)
    assert (folder / "core" / "names.py").exists()
    (folder / "core" / "names.py").write_text(NAMES)


def copy_cpp(folder: Path, namespace: str) -> None:
    """csrc, whose kernels register under `namespace`, a name or a macro."""
    shutil.copytree(ROOT / "csrc", folder, dirs_exist_ok=True)
    header = folder / "common" / "host" / "library.h"
    text, defined = header.read_text(), "#define METRICSEG_NAMESPACE metricseg\n"
    assert text.count(defined) == 1, header
    header.write_text(text.replace(defined, f"#define METRICSEG_NAMESPACE {namespace}\n"))


def sources(out: Path) -> None:
    """A project that kernel-builder builds for every torch, CUDA and platform it knows."""
    copy_python(out / "torch-ext" / PACKAGE)
    copy_cpp(out / "csrc", "TORCH_EXTENSION_NAME")
    (out / "torch-ext" / "torch_binding.cpp").write_text(BINDING)
    (out / "flake.nix").write_text(FLAKE)
    (out / "build.toml").write_text(build_toml(out))


def build_toml(out: Path) -> str:
    """CPU kernels belong to every variant, CUDA kernels to those with CUDA."""
    files = sorted(path.relative_to(out).as_posix() for path in (out / "csrc").rglob("*.*"))
    cuda = [name for name in files if name.endswith((".cu", ".cuh", ".h"))]
    cpu = [name for name in files if name.endswith((".cpp", ".h"))]
    table = lambda names: "".join(f'  "{name}",\n' for name in names)  # noqa: E731
    return f"""[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "{LICENSE}"
backends = ["cpu", "cuda"]

[torch]
cxx-flags = {json.dumps(CXX_FLAGS)}
src = [
  "torch-ext/torch_binding.cpp",
{table(cpu)}]

[torch.stable-abi]
cpu = "{TORCH}"
cuda = "{TORCH}"

[kernel.{PACKAGE}]
backend = "cuda"
depends = ["torch"]
src = [
{table(cuda)}]
"""


def revision() -> str:
    """Short hash of the commit, with _dirty if files differ from it, as kernel-builder does."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True)
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    return commit.stdout.strip() + ("_dirty" if status.stdout else "")


def built(out: Path, kernels: str) -> Path:
    """One variant: the package with the kernels named, "cpu" or "cuda" (and cpu), built by setup.py, or "none"."""
    identity = f"_{PACKAGE}_{'cuda' if kernels == 'cuda' else 'cpu'}_{revision()}"
    if kernels == "none":
        return lay_out(out / "build" / "torch-cpu", identity)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_cpp(tree / "csrc", identity)
        for name in (PACKAGE, "metricseg"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns(*BUILT))
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
        environment = {**os.environ, "METRICSEG_BUILD_CUDA": str(int(kernels == "cuda"))}
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True, env=environment
        )
        record = json.loads((tree / PACKAGE / "_build.json").read_text())
        if record["error"]:
            raise SystemExit(f"the extension did not build: {record['error']}")
        device = "cpu" if kernels == "cpu" else cuda_name(record["cuda_home"])
        return lay_out(out / "build" / variant_name(device), identity, tree / PACKAGE)


def cuda_name(home: str) -> str:
    text = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return "cu" + "".join(re.search(r"release (\d+)\.(\d+)", text).groups())


def variant_name(device: str) -> str:
    """As the library chooses by it: the stable ABI of torch, cpu or cu130, the platform."""
    return f"torch-stable-abi{TORCH.replace('.', '')}-{device}-{platform.machine()}-{platform.system().lower()}"


def lay_out(variant: Path, identity: str, package: Path | None = None) -> Path:
    """The folder of a variant: Python files, the extension and the record of `package`, and metadata.json."""
    copy_python(variant)
    (variant / "_ops.py").write_text(OPS.format(id=identity))
    backend: dict[str, object] = {"type": "cuda" if "_cuda_" in identity else "cpu"}
    if package is not None:
        shutil.copy(package / "_C.so", variant / f"{identity}.abi3.so")
        shutil.copy(package / "_build.json", variant)
    if backend["type"] == "cuda":
        backend["archs"] = json.loads((variant / "_build.json").read_text())["cuda_arch_list"].split(";")
    metadata = {
        "name": NAME,
        "id": identity,
        "version": VERSION,
        "license": LICENSE,
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": digests(variant)},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return variant


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "metadata.json")
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).digest() for path in files}
    return {name: base64.b64encode(digest).decode() for name, digest in hashes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sources", "built"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kernels", choices=["none", "cpu", "cuda"], default="cpu", help="of what is built")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        raise SystemExit(f"{arguments.folder} exists")
    if arguments.what == "sources":
        sources(arguments.folder)
    else:
        print(built(arguments.folder, arguments.kernels))


if __name__ == "__main__":
    main()
