"""What pytest sees of a race: parameters of its rows, the race itself, a row's figures, a clock of its times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from benchmarks.harness import machine, memory
from benchmarks.harness.race import Contestant, Problem, Result, peak_meter, run
from metricseg_kernels.core.registry import FAMILIES


def own_backends(family: str, device: str) -> list[str]:
    """Our backends with kernels for a device."""
    return [name for name in getattr(FAMILIES[family], device) if name != "reference"]


def parameters(
    problems: Iterable[tuple[Any, str, tuple[str, ...]]], entrants: Callable[..., Sequence[Contestant]],
    quick: Callable[[Any, str], bool],
) -> Iterator[Any]:  # fmt: skip
    """pytest's parameters (shape, loss, phase, contestant, phases) of all rows of a benchmark.

    Rows of the races that are `quick(shape, loss)` have the marker quick.
    """
    for shape, loss, phases in problems:
        for phase in phases:
            for contestant in entrants(shape, loss):
                name = f"{shape}-{loss}-{phase}-{contestant.name.replace(' ', '-')}"
                marks = [pytest.mark.quick] if quick(shape, loss) else []
                yield pytest.param(shape, loss, phase, contestant.name, phases, id=name, marks=marks)


def measure(
    make: Callable[..., Problem], contestants: Callable[[str], Sequence[Contestant]], shape: Any, loss: str,
    phases: tuple[str, ...], processes: memory.FreshProcesses | None,
) -> tuple[Problem, dict[str, Result]]:  # fmt: skip
    """(problem, results) of all contestants."""
    device = machine.DEVICE
    problem = make(shape, loss, device)
    meter = peak_meter(problem, contestants, processes, device)
    return problem, run(problem, contestants(loss), device, meter, phases)


def report(
    problem: Problem, contestants: Sequence[Contestant], results: dict[str, Result], name: str, phase: str, device: str
) -> dict[str, Any]:
    """The figures of one contestant's phase: against the limits, and for ours against each peer."""
    result, limits = results[name], machine.limits(device)
    seconds = result.median(phase)
    least_bytes, least_exp, flops = problem.least_bytes(phase), problem.least_exponentials(), problem.least_flops(phase)
    rate = limits["flops_per_s"].get(machine.arithmetic(problem.leaves[0]), float("inf"))
    limit = max(least_bytes / limits["bytes_per_s"], least_exp / limits["exp_per_s"], flops / rate)
    figures: dict[str, Any] = {
        "contestant": name,
        "phase": phase,
        "peak_mib": result.peak_bytes[phase] / 2**20 if phase in result.peak_bytes else None,
        "gb_per_s": least_bytes / seconds / 1e9,
        "gexp_per_s": least_exp / seconds / 1e9,
        "gflop_per_s": flops / seconds / 1e9,
        "limit_ms": limit * 1e3,
        "times_limit": seconds / limit,
        "loss_error": result.loss_error,
        "gradient_error": result.gradient_error,
    }
    if kernels := result.kernels.get(phase):
        figures["device_ms"] = sum(kernel.seconds for kernel in kernels) * 1e3
        figures["launches"] = sum(kernel.launches for kernel in kernels)
        figures["kernels_ms"] = {kernel.name: kernel.seconds * 1e3 for kernel in kernels[:8]}
    by_name = {contestant.name: contestant for contestant in contestants}
    figures["ours"], figures["bare"] = by_name[name].ours, by_name[name].bare is not None
    if figures["ours"]:
        others = {n: r for n, r in results.items() if not by_name[n].ours and phase in r.times}
        peers = {n: r for n, r in others.items() if by_name[n].bare is None}
        bare = {n: r for n, r in others.items() if by_name[n].bare is not None}
        figures["times_bare"] = {n: seconds / r.median(phase) for n, r in bare.items()}
        figures["times_as_fast_as"] = {n: r.median(phase) / seconds for n, r in peers.items()}
        if result.peak_bytes.get(phase, 0) > 0:
            own = result.peak_bytes[phase]
            figures["memory_of"] = {n: r.peak_bytes[phase] / own for n, r in peers.items() if phase in r.peak_bytes}
    return figures


class Replay:
    """A clock that advances by recorded times: how the rounds of a race reach pytest-benchmark's own statistics."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def feed(self, benchmark: Any, times: list[float]) -> None:
        rounds = iter(times)

        def play() -> None:
            self.now += next(rounds)

        benchmark.pedantic(play, rounds=len(times), iterations=1)


REPLAY = Replay()
