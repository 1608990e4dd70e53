"""The Triton tests on compiled kernels, without a GPU: `python -m pytest -p ttsem_plugin tests -k triton`.

ttsem executes Triton's IR of a kernel, compiled for sm_90, on CPU tensors. A test fails if a program reads or writes out
of bounds, reads memory that nothing wrote, or races with another program. With METRICSEG_RECORD=FOLDER the calls of the
launchers are kept there, for `python -m launches recorded`.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import types
from collections.abc import Iterator
from typing import Any

import pytest

os.environ["TRITON_INTERPRET"] = "0"  # before kernels are imported

from ttsem import harness, mlir, sanitize

from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

_launches: collections.Counter[str] = collections.Counter()
_unchecked: list[str] = []
_session = contextlib.ExitStack()
_ir: dict[tuple[Any, ...], str] = {}


def _compile_to_ir(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> dict[str, str]:
    """The IR that ttsem executes, made once for a kernel; ttsem itself compiles on to machine code at every launch."""
    options, *specialization = harness._specialize(fn, args, kwargs, target)
    key = (fn, str(specialization), str(options))
    if key not in _ir:
        launch = types.SimpleNamespace(fn=fn, args=args, kwargs=kwargs, fn_name=fn.__name__)
        _ir[key] = harness._stage_text(launch, "ttir", target)
    return {"ttir": _ir[key]}


def pytest_configure(config: pytest.Config) -> None:
    from triton.runtime.jit import JITFunction

    mlir.enable_generic_printing()
    harness._compile_asm = _compile_to_ir
    mlir.parse = functools.cache(mlir.parse)  # ttsem itself reads the text again at every launch
    _session.enter_context(
        sanitize.session(cuda_is_cpu=False, on_unchecked=lambda: _unchecked.append(os.environ["PYTEST_CURRENT_TEST"]))
    )
    run = JITFunction.run

    def count(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
        _launches[self.__name__] += 1
        return run(self, *args, **kwargs)

    JITFunction.run = count
    why_not = backends.why_not
    backends.why_not = lambda family, backend, *of: (
        None if backend == "triton" and backend in FAMILIES[family].backends else why_not(family, backend, *of)
    )
    if folder := os.environ.get("METRICSEG_RECORD"):
        from launches import recorded

        _session.enter_context(recorded.recording(folder))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Counts of a worker of pytest-xdist."""
    _launches.update(node.workeroutput.get("launches", {}))
    _unchecked.extend(node.workeroutput.get("unchecked", []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput.update(launches=dict(_launches), unchecked=_unchecked)
    elif _unchecked and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    names = ", ".join(f"{name} {count}" for name, count in sorted(_launches.items()))
    terminalreporter.write_line(f"ttsem executed {sum(_launches.values())} launches: {names}")
    for test in _unchecked:
        terminalreporter.write_line(f"not checked for races: {test}")


@pytest.hookimpl(hookwrapper=True)
def pytest_unconfigure() -> Iterator[None]:
    _session.close()
    yield
