"""Benchmarks as a race: contestants that compute one result, checked first, then timed in turns.

A contestant whose loss or gradient is off the fp64 truth is an error and gets no time. The others run lap by lap, each
phase of each contestant once a lap, so that a busy spell of the machine hits all of them; medians are compared. A call
of seconds is timed in the first lap only.
On CUDA a lap's time lies between two events, after a write that empties the L2 cache; on the CPU it is wall time.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.harness import machine, memory
from benchmarks.harness.kernels import Kernel, kernels_of
from metricseg.utils.memory import cuda_peak

PHASES = ("forward", "step")  # loss alone without a gradient; loss and gradient
BUDGET = {"cpu": 1.0, "cuda": 0.7}  # seconds of laps per race
LAPS = {"cpu": (3, 20), "cuda": (10, 100)}
SLOW = 2.0  # seconds of a call that is timed once
# Relative error of the loss, relative L2 error of a gradient. Peers round interpolated logits to the input's dtype.
TOLERANCE = {
    "float64": (1e-9, 1e-9),
    "float32": (1e-4, 1e-4),
    "tf32": (5e-3, 1e-2),
    "bfloat16": (1e-2, 5e-2),
    "float16": (5e-3, 1e-2),
}


class Problem(Protocol):
    """What the contestants have to compute."""

    name: str
    shape: Any
    loss: str
    leaves: tuple[Tensor, ...]

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss, or what the contestants' `checked` gives, and the gradients of the leaves, in fp64."""

    def least_bytes(self, phase: str) -> int:
        """Bytes that any implementation has to move."""

    def least_exponentials(self) -> int:
        """Exponentials that any implementation has to compute, in either phase."""

    def least_flops(self, phase: str) -> int:
        """Operations of matrix products that any implementation has to do, two per multiply-add."""


@dataclass(frozen=True)
class Contestant:
    """`loss(problem)` is the whole forward pass. `missing`: why it can't run here.

    checked: what is held against the truth in the place of a loss whose truth would take too long.
    bare: work without a result, `bare(problem, phase)`: a limit to compare with, which there is nothing to check of.
    apart: what loss and gradient may differ by from the truth, relative, by what they are defined as.
    """

    name: str
    loss: Callable[[Any], Tensor]
    ours: bool = False
    missing: str | None = None
    checked: Callable[[Any], Tensor] | None = None
    bare: Callable[[Any, str], None] | None = None
    apart: tuple[float, float] = (0.0, 0.0)


Meter = Callable[[Contestant, Sequence[str]], dict[str, memory.Measured]]


@dataclass
class Result:
    """One contestant's race. `error` stands in place of the times; times and what ran on the device are by phase."""

    times: dict[str, list[float]] = field(default_factory=dict)
    kernels: dict[str, list[Kernel]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    loss_error: float = 0.0
    gradient_error: float = 0.0
    error: Exception | None = None

    def median(self, phase: str) -> float:
        return statistics.median(self.times[phase])


def why_absent(contestant: Contestant, device: str) -> str | None:
    """None if it takes part, else the reason. On a GPU compilation by Inductor takes longer than all else together."""
    if contestant.name == "torch.compile" and device == "cuda" and os.environ.get("METRICSEG_BENCH_COMPILE") != "1":
        return "on a GPU only with METRICSEG_BENCH_COMPILE=1, for the minutes that it takes"
    return contestant.missing


class WrongResult(AssertionError):
    """A contestant's loss or gradient is off the truth."""


def make_step(problem: Problem, contestant: Contestant, phase: str) -> Callable[[], None]:
    """One lap's work: the loss alone, or the loss and its gradient in fresh memory."""
    if contestant.bare is not None:
        return functools.partial(contestant.bare, problem, phase)

    def forward() -> None:
        with torch.no_grad():
            contestant.loss(problem)

    def step() -> None:
        contestant.loss(problem).backward()

    return forward if phase == "forward" else step


def forget_gradients(problem: Problem) -> None:
    for leaf in problem.leaves:
        leaf.grad = None


def fresh_steps(
    make_problem: Callable[..., Problem], entrants: Callable[..., Sequence[Contestant]], shape: Any, loss: str,
    contestant: str, phases: Sequence[str], warm_up: Any = None,
) -> list[Callable[[], None]]:  # fmt: skip
    """The step of each phase, made in a fresh process on the CPU; warm_up: a smaller shape to run once before."""
    if warm_up is not None:
        for step in fresh_steps(make_problem, entrants, warm_up, loss, contestant, phases):
            step()
    problem = make_problem(shape, loss, "cpu")
    chosen = next(c for c in entrants(loss, "cpu") if c.name == contestant)

    def lap(step: Callable[[], None]) -> None:
        step()
        forget_gradients(problem)

    return [functools.partial(lap, make_step(problem, chosen, phase)) for phase in phases]


def check(problem: Problem, contestant: Contestant, truth: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[float, float]:
    """(relative error of the loss, largest relative L2 error of a gradient); beyond the tolerance, WrongResult."""
    forget_gradients(problem)
    loss = (contestant.checked or contestant.loss)(problem)
    loss.backward()
    true_loss, true_gradients = truth
    loss_error = float((loss.detach().double() - true_loss).abs() / true_loss.abs())
    errors = [relative_l2(leaf.grad, true) for leaf, true in zip(problem.leaves, true_gradients, strict=True)]
    forget_gradients(problem)
    tolerance = TOLERANCE[machine.arithmetic(problem.leaves[0])]
    loss_tolerance, gradient_tolerance = (t + apart for t, apart in zip(tolerance, contestant.apart, strict=True))
    if not (loss_error <= loss_tolerance and max(errors) <= gradient_tolerance):  # NaN fails too
        raise WrongResult(
            f"{contestant.name} on {problem.name}: loss off by {loss_error:.1e} (may be {loss_tolerance:.0e}), "
            f"gradient by {max(errors):.1e} (may be {gradient_tolerance:.0e}); no time is reported"
        )
    return loss_error, max(errors)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Set the precision of float32 products and convolutions on CUDA, as torch.set_float32_matmul_precision does."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def relative_l2(value: Tensor | None, truth: Tensor) -> float:
    if value is None:
        return float("inf")
    return float(torch.linalg.vector_norm(value.double() - truth) / torch.linalg.vector_norm(truth))


class Clock:
    """Times one call on a device."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        if self.cuda:
            self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)
            self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, call: Callable[[], None]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        self.flush.zero_()
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3


def run(
    problem: Problem,
    contestants: Sequence[Contestant],
    device: str,
    meter: Meter | None = None,
    phases: Sequence[str] = PHASES,
    budget: float | None = None,
    laps: tuple[int, int] | None = None,
) -> dict[str, Result]:
    """Checks, measures memory (`meter(contestant, phases)`), then times those that take part, see `why_absent`.

    laps: at least and at most so many, within the budget. With a single one, and for a step on the CPU, the check is
    the warm-up. A single one is the run whose memory is measured, if that run has a time. A call of more than SLOW
    seconds takes part in the first lap only.
    """
    laps = laps or LAPS[device]
    entered = [contestant for contestant in contestants if why_absent(contestant, device) is None]
    results = {contestant.name: Result() for contestant in entered}
    apart = device == "cpu" and laps[1] > 1  # in other processes, and nothing is timed before the laps
    with ThreadPoolExecutor(2) as pool:
        meanwhile = [
            pool.submit(_measure, contestant, results[contestant.name], meter, phases, False)
            for contestant in entered
            if meter is not None and apart
        ]
        steps = _check_all(problem, entered, results, phases, device, laps[1] > 1)
        for measuring in meanwhile:
            measuring.result()
    if meter is not None and not apart:
        for contestant in entered:
            if results[contestant.name].error is None:
                _measure(contestant, results[contestant.name], meter, phases, laps[1] == 1)
    forget_gradients(problem)
    steps = [
        (name, phase, call) for name, phase, call in steps if results[name].error is None and not results[name].times
    ]
    _laps(problem, steps, results, device, BUDGET[device] if budget is None else budget, laps)
    if device == "cuda":
        for name, phase, call in steps:
            results[name].kernels[phase] = kernels_of(call)
            forget_gradients(problem)
    return results


def _check_all(
    problem: Problem, contestants: Sequence[Contestant], results: dict[str, Result], phases: Sequence[str], device: str,
    warm_up: bool,
) -> list[tuple[str, str, Callable[[], None]]]:  # fmt: skip
    """(contestant, phase, step) of those that are right, and warm if the check was not the warm-up."""
    truth = problem.truth()
    steps: list[tuple[str, str, Callable[[], None]]] = []
    for contestant in contestants:
        result = results[contestant.name]
        try:
            if contestant.bare is None:
                result.loss_error, result.gradient_error = check(problem, contestant, truth)
            calls = [(contestant.name, phase, make_step(problem, contestant, phase)) for phase in phases]
            for _, phase, call in calls:
                if warm_up and not (device == "cpu" and phase == "step" and contestant.bare is None):
                    call()
                    forget_gradients(problem)
            steps += calls
        except Exception as error:
            result.error = error
            forget_gradients(problem)
    return steps


def _measure(contestant: Contestant, result: Result, meter: Meter, phases: Sequence[str], timed: bool) -> None:
    """Peak memory of a contestant; with `timed` its seconds too, if each phase has some."""
    try:
        measured = meter(contestant, phases)
    except Exception as error:
        result.error = result.error or error
        return
    result.peak_bytes = {phase: found.peak_bytes for phase, found in measured.items()}
    if timed and all(found.seconds is not None for found in measured.values()):
        result.times = {phase: [found.seconds] for phase, found in measured.items()}


def _laps(
    problem: Problem,
    steps: list[tuple[str, str, Callable[[], None]]],
    results: dict[str, Result],
    device: str,
    budget: float,
    laps: tuple[int, int],
) -> None:
    clock = Clock(device)
    fewest, most = laps
    start, lap = time.perf_counter(), 0
    gc.collect()
    gc.disable()
    try:
        while lap < fewest or (lap < most and time.perf_counter() - start < budget):
            for name, phase, call in steps:
                times = results[name].times.setdefault(phase, [])
                if not times or times[0] < SLOW:
                    times.append(clock.time(call))
                    forget_gradients(problem)
            lap += 1
    finally:
        gc.enable()


def peak_meter(
    problem: Problem, contestants: Callable[..., Sequence[Contestant]], processes: memory.FreshProcesses | None,
    device: str, warm_up: Any = None,
) -> Meter | None:  # fmt: skip
    """The meter of a contestant's memory by phase: on CUDA in this process, on the CPU in a fresh one, after a smaller
    shape if one is given; None without processes."""

    def meter(contestant: Contestant, phases: Sequence[str]) -> dict[str, memory.Measured]:
        if device == "cuda":
            peaks = [cuda_peak(make_step(problem, contestant, phase)) for phase in phases]
            return {phase: memory.Measured(peak) for phase, peak in zip(phases, peaks, strict=True)}
        assert processes is not None
        smaller = None if contestant.name == "torch.compile" else warm_up  # each shape is compiled
        arguments = type(problem), contestants, problem.shape, problem.loss, contestant.name, phases, smaller
        measured = processes.measure(fresh_steps, *arguments, warm=smaller is not None)
        return dict(zip(phases, measured, strict=True))

    return meter if device == "cuda" or processes is not None else None
