"""Installs of a copy of this checkout, editable and from an sdist and a wheel, with and without what a machine may have.

The copy is installed into an environment of its own that sees this one's torch; CUDA kernels are left out to keep it
quick (test_nvcc.py compiles them). If the kernels are not the point, one small source stands in for all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from cuda_binary import find_nvcc
from places import ROOT

COPIED = ("csrc", "metricseg", "metricseg_kernels", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
HIDDEN = shutil.ignore_patterns("_C*.so", "_build.json", "__pycache__", "*.egg-info")
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX", "CUDA_HOME")}
NO_COMPILER = "/nowhere/c++"
WHEEL_BYTES = 6_000_000
WHEEL_ARCHITECTURES = "8.0;9.0"  # without PTX, which is 2 MB: later devices take Triton, or a build of their own
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in COPIED:
        source, copy = ROOT / name, tmp_path / "checkout" / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copytree(source, copy, ignore=HIDDEN) if source.is_dir() else shutil.copy(source, copy)
    return tmp_path / "checkout"


@pytest.fixture
def tracked(tmp_path: Path) -> Path:
    """A copy of every file of the repository."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    for name in listing.stdout.splitlines():
        if (ROOT / name).exists():
            (tmp_path / "tracked" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "tracked" / name)
    return tmp_path / "tracked"


@pytest.fixture
def small(checkout: Path) -> Path:
    """The checkout with one small source in place of the kernels."""
    for source in (checkout / "csrc").rglob("*.cpp"):
        source.unlink()
    (checkout / "csrc" / "common" / "small.cpp").write_text('extern "C" int metricseg_small() { return 0; }\n')
    return checkout


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    env = CLEAN | {"METRICSEG_BUILD_CUDA": "0"} | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, tree: Path, **environment: str) -> Path:
    """The sdist or wheel of a source tree, as `pip` builds it without isolation."""
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    return tree / "dist" / run(sys.executable, "-c", script, cwd=tree, **environment).splitlines()[-1]


def unpacked(sdist: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return sdist.parent / sdist.name.removesuffix(".tar.gz")


def environment(folder: Path) -> tuple[Path, Path]:
    """An empty environment: its interpreter and the folder of its packages."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    return folder / "bin" / "python", next((folder / "lib").glob("python3*")) / "site-packages"


def share_torch(packages: Path) -> None:
    (packages / "shared.pth").write_text("\n".join(site.getsitepackages()))


def pip(python: Path, *arguments: str | Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--no-deps"]
    run(*command, *arguments, cwd=python.parent, **environment)


def report_of(python: Path, cwd: Path) -> str:
    return run(python, "-m", "metricseg_kernels", cwd=cwd)


def install(checkout: Path, see_torch: bool = True, **variables: str) -> tuple[dict[str, object], str]:
    """The record of an editable install, and the report of the installed package."""
    python, packages = environment(checkout.parent / "venv")
    share_torch(packages)
    hide = {} if see_torch else {"PYTHONPATH": str(_without_torch(checkout.parent))}
    pip(python, "--no-build-isolation", "-e", checkout, **variables, **hide)
    report = report_of(python, checkout.parent)
    assert str(checkout) in report
    return json.loads((checkout / "metricseg_kernels" / "_build.json").read_text()), report


def _without_torch(folder: Path) -> Path:
    (folder / "hidden").mkdir()
    (folder / "hidden" / "torch.py").write_text("raise ImportError('no torch here')\n")
    return folder / "hidden"


def install_wheel(wheel: Path, folder: Path, **variables: str) -> tuple[Path, Path]:
    """The interpreter and the packages of an environment that holds this wheel alone, beside this one's torch."""
    python, packages = environment(folder)
    pip(python, "--no-index", wheel, **variables)
    share_torch(packages)
    return python, packages


def test_sdist_holds_every_source(tracked: Path) -> None:
    names = {path.relative_to(tracked).as_posix() for path in tracked.rglob("*") if path.is_file()}
    built = ("metricseg_kernels/_C.so", "metricseg_kernels/_build.json", "tests/__pycache__/ranks.pyc")
    for name in built:
        (tracked / name).parent.mkdir(exist_ok=True)
        (tracked / name).touch()
    with tarfile.open(build("sdist", tracked)) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name for name in names if not name.startswith(".")} <= packed
    assert packed.isdisjoint(built)


def test_wheel_without_kernels(checkout: Path, tmp_path: Path) -> None:
    """From the sdist, without a compiler: pure Python by its tag, and it runs from another folder."""
    wheel = build("wheel", unpacked(build("sdist", checkout)), CXX=NO_COMPILER)
    assert wheel.name.endswith("-py3-none-any.whl")
    python, packages = install_wheel(wheel, tmp_path / "venv")
    report = report_of(python, tmp_path)
    assert str(packages) in report and f"extension: there is no C++ compiler ({NO_COMPILER})" in report
    script = """
import torch
from metricseg.losses import CrossEntropyLoss
print(CrossEntropyLoss()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8)))
"""
    assert "1.0986" in run(python, "-c", script, cwd=tmp_path)


@needs_compiler
def test_wheel_with_a_library(small: Path, tmp_path: Path) -> None:
    """One for every Python on the platform: no symbol of Python's, and none for the linker or a debugger."""
    wheel = build("wheel", unpacked(build("sdist", small)))
    assert wheel.name.endswith(f"-py3-none-{PLATFORM}.whl")
    python, packages = install_wheel(wheel, tmp_path / "venv")
    assert "extension: loaded" in report_of(python, tmp_path)
    library = packages / "metricseg_kernels" / "_C.so"
    assert " Py" not in run("nm", "--dynamic", library, cwd=tmp_path)
    sections = run("readelf", "--sections", "--wide", library, cwd=tmp_path)
    assert ".dynsym" in sections and ".symtab" not in sections and ".debug" not in sections
    assert all((packages / name / "py.typed").exists() for name in ("metricseg", "metricseg_kernels"))


def test_metadata(checkout: Path) -> None:
    with zipfile.ZipFile(build("wheel", checkout, CXX=NO_COMPILER)) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
        metadata = wheel.read(name).decode().splitlines()
    for line in ("License-Expression: Apache-2.0", "License-File: LICENSE", "Author: metricseg contributors"):
        assert line in metadata


@needs_compiler
def test_nothing_of_an_earlier_build_stays(small: Path) -> None:
    (small / "metricseg" / "gone.py").touch()
    assert build("wheel", small).name.endswith(f"-{PLATFORM}.whl")
    (small / "metricseg" / "gone.py").unlink()
    wheel = build("wheel", small, CXX=NO_COMPILER)
    assert wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "metricseg_kernels/_C.so" not in names and "metricseg/gone.py" not in names
    for compiler, built in (("c++", True), (NO_COMPILER, False)):
        run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=small, CXX=compiler)
        record = json.loads((small / "metricseg_kernels" / "_build.json").read_text())
        assert (small / "metricseg_kernels" / "_C.so").exists() == built == (record["error"] is None)


def test_a_checkout_that_shadows_an_installed_wheel(checkout: Path, tmp_path: Path) -> None:
    python, packages = install_wheel(build("wheel", checkout, CXX=NO_COMPILER), tmp_path / "venv")
    copy = packages / "metricseg_kernels"
    assert f"shadows the copy in {copy} (run from another folder to use that one)" in report_of(python, checkout)
    assert str(packages) in report_of(python, tmp_path)


def compressed(wheel: Path, folder: Path) -> Path:
    """A copy whose files are the same and take the least that deflate can give."""
    import zopfli

    copy = folder / wheel.name
    with zipfile.ZipFile(wheel) as source, zopfli.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry, source.read(entry))
    return copy


@pytest.mark.slow
@needs_compiler
def test_wheel_of_the_kernels(tracked: Path, tmp_path: Path) -> None:
    """The wheel of the sdist, with CUDA kernels if nvcc is there: auditwheel tags it, the auditors of both stable ABIs find
    nothing, it is small, and it runs where there is no compiler."""
    for tool in ("auditwheel", "abi3audit", "torch_abi_audit", "zopfli"):
        pytest.importorskip(tool)
    sdist, tools, cuda = build("sdist", tracked), Path(sys.executable).parent, find_nvcc() is not None
    built = build(
        "wheel", unpacked(sdist), METRICSEG_BUILD_CUDA=str(int(cuda)), TORCH_CUDA_ARCH_LIST=WHEEL_ARCHITECTURES
    )
    ours = [option for name in ("libtorch*.so", "libc10*.so") for option in ("--exclude", name)]  # pip installs torch
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    run(tools / "auditwheel", "repair", *ours, "-w", tmp_path / "out", built, cwd=tmp_path, PATH=path)
    (repaired,) = (tmp_path / "out").glob("metricseg-*-py3-none-manylinux_2_*.whl")
    wheel = compressed(repaired, tmp_path)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {'with' if cuda else 'without'} CUDA kernels")
    assert wheel.stat().st_size < WHEEL_BYTES
    if "METRICSEG_WHEELS" in os.environ:  # see noxfile.py
        for file in (sdist, wheel):
            shutil.copy(file, os.environ["METRICSEG_WHEELS"])
    python, packages = install_wheel(wheel, tmp_path / "venv", PATH="/nowhere")
    assert "cpu       takes it" in run(python, "-m", "metricseg_kernels", cwd=tmp_path, PATH="/nowhere")
    run(tools / "abi3audit", "--strict", "--assume-minimum-abi3", "3.10", wheel, cwd=tmp_path)
    library = packages / "metricseg_kernels" / "_C.so"
    assert "Min torch:   2.10.0" in run(tools / "torch-abi-audit", library, "--check", "torch", cwd=tmp_path)


@needs_compiler
def test_with_a_compiler(small: Path) -> None:
    record, report = install(small)
    assert record["error"] is None and record["cuda_error"] == "METRICSEG_BUILD_CUDA=0"
    assert "extension: loaded" in report


def test_without_a_compiler(checkout: Path) -> None:
    record, report = install(checkout, CXX=NO_COMPILER)
    assert record["error"] == f"there is no C++ compiler ({NO_COMPILER})"
    assert f"extension: there is no C++ compiler ({NO_COMPILER})" in report
    assert "reference takes it" in report


def test_without_torch_at_build_time(checkout: Path) -> None:
    record, report = install(checkout, see_torch=False)
    assert "torch was not there at build time" in record["error"]
    assert "reference takes it" in report


@needs_compiler
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("#error broken", "small.cpp:1:2: error: #error broken"),
        ("int f() {\n  return absent;\n}", "small.cpp:2:10: error: 'absent' was not declared"),
    ],
)
def test_the_error_of_the_compiler(small: Path, source: str, message: str) -> None:
    (small / "csrc" / "common" / "small.cpp").write_text(f"{source}\n")
    record, report = install(small, LC_ALL="C")
    assert message in record["error"]
    assert "extension: the extension did not build: " in report
    assert message in report[report.index("output of the compiler:") :]


@needs_compiler
def test_the_error_of_the_linker(small: Path) -> None:
    record, report = install(small, LDFLAGS="-lmetricseg_absent", LC_ALL="C")
    assert "cannot find -lmetricseg_absent" in record["error"]
    assert "cannot find -lmetricseg_absent" in report[report.index("output of the compiler:") :]


NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release 99.0, V99.0.1" ;;
  *) {compile} ;;
esac
"""


def toolkit(home: Path, compile: str) -> str:
    """A toolkit whose nvcc answers a compilation with these shell commands."""
    for folder in ("bin", "include", "lib64"):
        (home / folder).mkdir(parents=True)
    (home / "include" / "cuda_runtime.h").touch()
    (home / "bin" / "nvcc").write_text(NVCC.format(compile=compile))
    (home / "bin" / "nvcc").chmod(0o755)
    subprocess.run(["ar", "rcs", home / "lib64" / "libcudart_static.a"], check=True)
    return str(home)


@needs_compiler
def test_with_a_toolkit_of_another_version(small: Path) -> None:
    """An nvcc that does not match torch's CUDA, and compiles nothing."""
    nothing = 'while [ "$1" != -o ]; do shift; done; : | c++ -fPIC -x c++ -c - -o "$2"'
    home = toolkit(small.parent / "toolkit", nothing)
    record, _ = install(small, CUDA_HOME=home, METRICSEG_BUILD_CUDA="1")
    assert record["cuda_home"] == home and record["cuda_error"] is None and record["error"] is None


@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
def test_the_error_of_nvcc(small: Path) -> None:
    """CUDA kernels that do not build leave the CPU kernels, and a reason."""
    home = toolkit(small.parent / "toolkit", "echo 'cuda.cu(3): error: identifier \"x\" is undefined'; exit 2")
    record, report = install(small, CUDA_HOME=home, METRICSEG_BUILD_CUDA="auto")
    reason = 'the CUDA kernels did not build: cuda.cu(3): error: identifier "x" is undefined'
    assert record["cuda_error"] == reason and record["error"] is None
    assert "extension: loaded" in report and f"without CUDA kernels: {reason}" in report
    assert "is undefined" in report[report.index("output of the compiler:") :]


def test_cuda_insisted_on_where_it_cannot_be_built(checkout: Path) -> None:
    env = os.environ | {"METRICSEG_BUILD_CUDA": "1", "CXX": NO_COMPILER}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=checkout, env=env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"METRICSEG_BUILD_CUDA=1, but there is no C++ compiler ({NO_COMPILER})" in done.stdout + done.stderr


def test_with_a_setuptools_that_is_too_old(checkout: Path) -> None:
    script = "import setuptools; setuptools.__version__ = '76.1'; exec(open('setup.py').read())"
    done = subprocess.run([sys.executable, "-c", script], cwd=checkout, env=CLEAN, capture_output=True, text=True)
    assert done.returncode != 0 and "needs setuptools 77 or later to build, got 76.1" in done.stderr
