"""Runs each race once, when the first of its rows is asked for, and tells pytest-benchmark about the machine."""

from __future__ import annotations

from typing import Any

import machine
import memory
import pytest
import race

from metricseg.memory import why_not_resident


@pytest.fixture(scope="session")
def fresh_processes() -> memory.FreshProcesses | None:
    """What measures memory on the CPU, or None where it can't be measured."""
    families = ["bench_focal", "bench_contrast", "bench_anchors"]
    return None if why_not_resident() else memory.FreshProcesses(preload=families)


@pytest.fixture(scope="session")
def finished() -> dict[Any, Any]:
    """Races that have been run, by key."""
    return {}


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
