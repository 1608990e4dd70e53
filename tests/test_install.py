"""`pip install -e .` of a copy of this checkout, with and without what it may find on a machine.

The copy is installed into an environment of its own that sees this one's torch; CUDA kernels are left out to keep it
quick (test_nvcc.py compiles them).
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("csrc", "metricseg", "metricseg_kernels", "setup.py", "pyproject.toml", "README.md", "LICENSE")
HIDDEN = shutil.ignore_patterns("_C*.so", "_build.json", "__pycache__", "*.egg-info")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in COPIED:
        source, copy = ROOT / name, tmp_path / "checkout" / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copytree(source, copy, ignore=HIDDEN) if source.is_dir() else shutil.copy(source, copy)
    return tmp_path / "checkout"


def install(checkout: Path, see_torch: bool = True, **environment: str) -> tuple[dict[str, object], str]:
    """What the install wrote down, and the report of the installed package."""
    venv = checkout.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    library = next((venv / "lib").glob("python3*")) / "site-packages"
    shared = library / "shared.pth"
    shared.write_text("\n".join(site.getsitepackages()))
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    command = [*pip, "install", "--no-build-isolation", "--no-deps", "-e", checkout]
    hide = {} if see_torch else {"PYTHONPATH": str(_without_torch(checkout.parent))}
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env = clean | {"METRICSEG_BUILD_CUDA": "0"} | environment
    done = subprocess.run(command, env=env | hide, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = subprocess.run(
        [python, "-m", "metricseg_kernels"], cwd=checkout.parent, env=clean, capture_output=True, text=True, check=True
    ).stdout
    assert str(checkout) in report
    return json.loads((checkout / "metricseg_kernels" / "_build.json").read_text()), report


def _without_torch(folder: Path) -> Path:
    (folder / "hidden").mkdir()
    (folder / "hidden" / "torch.py").write_text("raise ImportError('no torch here')\n")
    return folder / "hidden"


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_with_a_compiler(checkout: Path) -> None:
    record, report = install(checkout)
    assert record["error"] is None and record["cuda_error"] == "METRICSEG_BUILD_CUDA=0"
    assert "extension: loaded" in report
    assert "cpu       takes it" in report


def test_without_a_compiler(checkout: Path) -> None:
    record, report = install(checkout, CXX="/nowhere/c++")
    assert record["error"] == "there is no C++ compiler (/nowhere/c++)"
    assert "extension: there is no C++ compiler (/nowhere/c++)" in report
    assert "reference takes it" in report


def test_without_torch_at_build_time(checkout: Path) -> None:
    record, report = install(checkout, see_torch=False)
    assert "torch was not there at build time" in record["error"]
    assert "reference takes it" in report


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_with_sources_that_do_not_compile(checkout: Path) -> None:
    (checkout / "csrc" / "focal" / "cpu.cpp").write_text("#error broken\n")
    record, report = install(checkout)
    assert "did not build" in record["error"] and "did not build" in report


NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release 99.0, V99.0.1" ;;
  *) while [ "$1" != -o ]; do shift; done; : | c++ -fPIC -x c++ -c - -o "$2" ;;
esac
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_with_a_toolkit_of_another_version(checkout: Path) -> None:
    """An nvcc that does not match torch's CUDA, and compiles nothing."""
    home = checkout.parent / "toolkit"
    for folder in ("bin", "include", "lib64"):
        (home / folder).mkdir(parents=True)
    (home / "include" / "cuda_runtime.h").touch()
    (home / "bin" / "nvcc").write_text(NVCC)
    (home / "bin" / "nvcc").chmod(0o755)
    subprocess.run(["ar", "rcs", home / "lib64" / "libcudart_static.a"], check=True)
    for source in (checkout / "csrc").glob("*/*.cpp"):
        source.unlink()
    record, _ = install(checkout, CUDA_HOME=str(home), METRICSEG_BUILD_CUDA="1")
    assert record["cuda_home"] == str(home) and record["cuda_error"] is None and record["error"] is None


def test_cuda_insisted_on_where_it_cannot_be_built(checkout: Path) -> None:
    env = os.environ | {"METRICSEG_BUILD_CUDA": "1", "CXX": "/nowhere/c++"}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=checkout, env=env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "METRICSEG_BUILD_CUDA=1, but there is no C++ compiler (/nowhere/c++)" in done.stdout + done.stderr
