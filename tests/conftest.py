"""Backends as a fixture. Without a device, Triton kernels run in their interpreter, which must be chosen before import."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import interpreter  # noqa: E402, F401  (Triton's, if it is chosen)
import places  # noqa: E402, F401  (modules of a family's tests by their names)
from selection import Sample, selected  # noqa: E402

from metricseg.utils.memory import why_not_resident  # noqa: E402
from metricseg_kernels.core import backends, extension  # noqa: E402
from metricseg_kernels.core.registry import FAMILIES  # noqa: E402


def runnable(family: str) -> dict[str, str | None]:
    """The backends of a family, and why one can't run here."""
    if os.environ.get("METRICSEG_COLLECT") == "device":  # by benchmarks/harness/device_tests.py, on any machine
        return dict.fromkeys(FAMILIES[family].backends)
    missing = {name: backends.why_not(family, name, device_of(name)) for name in FAMILIES[family].backends}
    if not ON_GPU and missing.get("cuda", "") is None:
        missing["cuda"] = "no CUDA device"
    return missing


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what is not collected, and why."""
    for name in backends.BACKENDS:
        families = {family: runnable(family).get(name) for family in FAMILIES}
        for reason in sorted(set(filter(None, families.values()))):
            without = ", ".join(family for family, found in families.items() if found == reason)
            terminalreporter.write_line(f"not collected: {name} tests of {without} ({reason})")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `backend`, and has no such parameter or fixture of its own, runs on each that can run here.

    A module may name its op FAMILY, else all count, and those BACKENDS that it is about. A test with the marker
    `kernels` does not run on the reference.
    """
    own = [mark for mark in metafunc.definition.iter_markers("parametrize") if "backend" in mark.args[0]]
    if "backend" in metafunc.fixturenames and not own and not hasattr(metafunc.module, "backend"):
        families = (metafunc.module.FAMILY,) if hasattr(metafunc.module, "FAMILY") else tuple(FAMILIES)
        names = getattr(metafunc.module, "BACKENDS", backends.BACKENDS)
        names = [b for b in names if any(runnable(f).get(b, "") is None for f in families)]
        if metafunc.definition.get_closest_marker("kernels"):
            names = [b for b in names if b != "reference"]
        metafunc.parametrize("backend", [pytest.param(b, marks=[pytest.mark.gpu] * (b == "cuda")) for b in names])


@pytest.fixture
def device(backend: str) -> str:
    return device_of(backend)


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """The command line lowers the precision of products for its process: here that process goes on."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def fresh_processes() -> object:
    """Processes that have imported this software and run nothing: benchmarks/harness/memory.py."""
    if (reason := why_not_resident() or extension.why_no_kernels("cpu")) is not None:
        pytest.skip(reason)
    from benchmarks.harness import memory

    return memory.FreshProcesses(preload=[*(f"{family}_cases" for family in FAMILIES), "metricseg.training.cli"])


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" or (backend == "triton" and ON_GPU) else "cpu"


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests, which every later collection would look at


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen: dict[bool, list[pytest.Item]] = {True: [], False: []}
    sample = Sample()
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        if params and "backend" in params and hasattr(item.module, "family_of"):
            family = item.module.family_of(params)
            if runnable(family).get(params["backend"], "") is not None:
                chosen[False].append(item)
                continue
        chosen[selected(item, ON_GPU) and sample.takes(item)].append(item)
        if item.get_closest_marker("gpu") and not ON_GPU:  # keywords hold names of folders too
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    config.hook.pytest_deselected(items=chosen[False])
    items[:] = chosen[True]
