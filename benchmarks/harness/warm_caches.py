"""Compile what the races of every family will launch: python -m benchmarks.harness.warm_caches I/N

Compilation takes longer than a race, and many processes can do it at once: this one takes the I-th of N shares of the
races, and calls each of our contestants once.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import race
from metricseg_kernels.core.registry import FAMILIES


def call_once(
    problem: race.Problem, contestants: Sequence[race.Contestant], device: str, peak: Any, phases: Sequence[str],
    *_: Any, **__: Any,
) -> dict[str, race.Result]:  # fmt: skip
    """In the place of race.run."""
    for contestant in contestants:
        if contestant.ours and contestant.missing is None:
            if contestant.checked is not None:
                contestant.checked(problem).backward()
            for phase in phases:
                race.make_step(problem, contestant, phase)()
            race.forget_gradients(problem)
    return {}


def main() -> int:
    which, shares = map(int, sys.argv[1].split("/"))
    benches = [importlib.import_module(f"benchmarks.bench_{family}") for family in FAMILIES]
    races = [(bench, *what) for bench in benches for what in bench.problems()]
    race.run, failed = call_once, 0
    for bench, shape, loss, phases in races[which - 1 :: shares]:
        try:
            bench.run_race(shape, loss, phases, None)
            print(f"{shape} {loss}: done", flush=True)
        except Exception:
            failed += 1
            print(f"{shape} {loss}: {traceback.format_exc()}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
