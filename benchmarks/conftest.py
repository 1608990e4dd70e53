"""Runs each race once, when the first of its rows is asked for, and tells pytest-benchmark about the machine.

METRICSEG_BENCH_ROWS=FILE keeps each row as soon as it is measured, for report.py: what a killed run had come to.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import entry, machine, memory, race
from metricseg.utils.memory import why_not_resident
from metricseg_kernels.core.registry import FAMILIES


@pytest.fixture(scope="session")
def fresh_processes() -> memory.FreshProcesses | None:
    """What measures memory on the CPU, or None where it can't be measured."""
    benches = [f"benchmarks.bench_{family}" for family in FAMILIES]
    compiler = ["torch._inductor.compile_fx", "torch.utils.cpp_extension"]  # seconds to import for a compiled peer
    return None if why_not_resident() else memory.FreshProcesses(preload=[*benches, *compiler])


@pytest.fixture(scope="session")
def finished() -> dict[Any, Any]:
    """The race that has been run last, by key."""
    return {}


@pytest.fixture
def raced(request: pytest.FixtureRequest, finished: dict[Any, Any]) -> Any:
    """raced(key, entered, name, run): (problem, results) of a race, run when the first of its rows asks; it is
    `run(processes)`. Skips where contestant `name` is missing, and raises what kept it from a time."""

    def raced(key: Any, entered: Any, name: str, run: Callable[[Any], Any]) -> Any:
        missing = race.why_absent(next(c for c in entered if c.name == name), machine.DEVICE)
        if missing is not None:
            pytest.skip(f"{name}: {missing}")
        if key not in finished:
            finished.clear()  # the tensors of the race before
            processes = request.getfixturevalue("fresh_processes") if machine.DEVICE == "cpu" else None
            try:
                finished[key] = run(processes)
            except Exception as error:
                finished[key] = error
        if isinstance(finished[key], Exception):
            raise finished[key]
        problem, results = finished[key]
        if results[name].error is not None:
            raise results[name].error
        return problem, results

    return raced


def about_machine() -> dict[str, Any]:
    return {**machine.record(), "limits": machine.limits()}


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(about_machine())


@pytest.fixture(scope="session")
def keep() -> Callable[[dict[str, Any], list[float]], None]:
    """keep(figures, times): appends a row to the file of rows, whose first line is the machine."""
    name = os.environ.get("METRICSEG_BENCH_ROWS")
    if name is None:
        return lambda figures, times: None
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"machine_info": about_machine(), "datetime": datetime.now(timezone.utc).isoformat()}
    path.write_text(json.dumps(head) + "\n")

    def keep(figures: dict[str, Any], times: list[float]) -> None:
        stats = {"median": statistics.median(times), "min": min(times), "rounds": len(times)}
        with path.open("a") as file:
            file.write(json.dumps({"extra_info": figures, "stats": stats}) + "\n")

    return keep


@pytest.fixture
def enter(benchmark: Any, keep: Callable[..., None]) -> Any:
    """enter(figures, times, group): hands one contestant's times and figures to pytest-benchmark."""

    def enter(figures: dict[str, Any], times: list[float], group: str) -> None:
        keep(figures, times)
        benchmark.group = group
        benchmark.extra_info.update(figures)
        entry.REPLAY.feed(benchmark, times)

    return enter
