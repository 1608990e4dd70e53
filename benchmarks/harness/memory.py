"""Peak extra memory of a step on the CPU, measured in a fresh process after a warm-up step.

Every process runs under the same malloc settings, by which freed memory goes back to the system at once, so that what
was freed before the step can't hide what the step needs.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from typing import Any, NamedTuple

import torch

from metricseg.utils.memory import resident_peak

Step = Callable[[], Any]

_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _serve(pipe: Any, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        torch.set_num_threads(threads)
        pipe.send(function(*arguments))
    except Exception as error:
        pipe.send(error)


def _measure(make: Callable[..., Sequence[Step]], arguments: tuple[Any, ...], warm: bool) -> list[Measured]:
    measured = []
    for step in make(*arguments):
        if not warm:
            step()
        start = time.perf_counter()
        measured.append(Measured(resident_peak(step), time.perf_counter() - start))
    return measured


def _one(make_step: Callable[..., Step], *arguments: Any) -> list[Step]:
    return [make_step(*arguments)]


class Measured(NamedTuple):
    """Peak extra bytes of a step, and its seconds if it was timed."""

    peak_bytes: int
    seconds: float | None = None


class FreshProcesses:
    """Calls functions in processes forked from one that has imported `preload` and run nothing."""

    def __init__(self, preload: list[str]) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(preload)
        kept = dict(os.environ)
        os.environ.pop("TRITON_INTERPRET", None)
        # the preloaded modules are found by PYTHONPATH only
        os.environ.update(_MALLOC, TORCHINDUCTOR_COMPILE_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(kept)

    def peak(self, make_step: Callable[..., Step], *arguments: Any) -> int:
        """Peak extra bytes of `make_step(*arguments)()`, after one run as a warm-up."""
        return self.measure(functools.partial(_one, make_step), *arguments)[0].peak_bytes

    def measure(
        self, make: Callable[..., Sequence[Step]], *arguments: Any, timeout: float = 120, warm: bool = False
    ) -> list[Measured]:
        """Peak memory and time of each step of `make(*arguments)` in one fresh process, in their order.

        Each step runs once as a warm-up, unless they are made `warm`.
        """
        return self.call(_measure, make, arguments, warm, timeout=timeout)

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> Any:
        """Result of the function in a fresh process, or its error; TimeoutError after `timeout` seconds."""
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_serve, args=(sender, torch.get_num_threads(), function, arguments))
        process.start()
        sender.close()
        try:
            answer = receiver.recv() if receiver.poll(timeout) else TimeoutError(f"no answer within {timeout} s")
        except EOFError:
            answer = RuntimeError(f"the process ended with status {process.exitcode}")
        finally:
            process.kill()
            process.join()
        if isinstance(answer, BaseException):
            raise answer
        return answer


def hold(mebibytes: int) -> Step:
    """A step of known peak, for the test of the meter."""

    def step() -> None:
        first = torch.ones(mebibytes << 18)  # 4 bytes each
        second = first + 1
        del first, second

    return step
