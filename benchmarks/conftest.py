"""Runs each race once, when the first of its rows is asked for, and tells pytest-benchmark about the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import machine
import memory
import pytest
import race

from metricseg.memory import why_not_resident


@pytest.fixture(scope="session")
def fresh_processes() -> memory.FreshProcesses | None:
    """What measures memory on the CPU, or None where it can't be measured."""
    families = ["bench_focal", "bench_contrast", "bench_anchors", "bench_centers"]
    return None if why_not_resident() else memory.FreshProcesses(preload=families)


@pytest.fixture(scope="session")
def finished() -> dict[Any, Any]:
    """The race that has been run last, by key."""
    return {}


@pytest.fixture
def raced(request: pytest.FixtureRequest, finished: dict[Any, Any]) -> Any:
    """raced(key, entered, name, run): (problem, results) of a race, run when the first of its rows asks; it is
    `run(processes)`. Skips where contestant `name` is missing, and raises what kept it from a time."""

    def raced(key: Any, entered: Any, name: str, run: Callable[[Any], Any]) -> Any:
        missing = next(c.missing for c in entered if c.name == name)
        if missing is not None:
            pytest.skip(f"{name}: {missing}")
        if key not in finished:
            finished.clear()  # the tensors of the race before
            finished[key] = run(request.getfixturevalue("fresh_processes") if machine.DEVICE == "cpu" else None)
        problem, results = finished[key]
        if results[name].error is not None:
            raise results[name].error
        return problem, results

    return raced


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(machine.record(), limits=machine.limits())


@pytest.fixture
def enter(benchmark: Any) -> Any:
    """enter(figures, times, group): hands one contestant's times and figures to pytest-benchmark."""

    def enter(figures: dict[str, Any], times: list[float], group: str) -> None:
        benchmark.group = group
        benchmark.extra_info.update(figures)
        race.REPLAY.feed(benchmark, times)

    return enter
