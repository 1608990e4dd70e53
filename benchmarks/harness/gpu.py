"""Everything for a GPU machine, in under nineteen minutes of one visit or of several: `make gpu`.

    python -m benchmarks.harness.gpu [--out FOLDER] [--only NAME ...] [--seconds N] [--again] [--plan]

Parts: build, tests, sanitizer, train, bench. Each is a list of commands, and a command a group of processes, each with
a log. First the build, then all that checks, as many processes at once as there are cores, then one benchmark after the
other. What comes later keeps its time; what earlier commands left over may be taken. A command that fails does not stop
the others. FOLDER (benchmarks/results/gpu-visit) gets logs, results and summary.json.

What passed is noted in .gpu, beside the caches of the compilers, and is skipped next time: a visit cut short goes on
where it stopped. --only takes parts (tests) and commands (tests/focal); --seconds are for all of them together, 1140 by
default; --again, for changed code, runs what passed before as well; --plan prints the commands.
METRICSEG_BENCH_COMPILE=1 adds torch.compile to the benchmarks.
The exit status is 0 if every command passed now or before, 2 if one could not run here, and 1 if one failed.
Uses the Python that runs it, and what that Python has: nothing is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metricseg_kernels.core import registry

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 1140  # seconds for all commands together
# by command, in their order, of a whole machine of 16 cores: of checks, which share it, seconds of processes / 16
SECONDS = {
    "build/extension": 50, "build/report": 4, "tests/small": 22,
    **{f"tests/{family}": record.gpu_seconds[0] for family, record in registry.FAMILIES.items()},
    "sanitizer/cuda": 16, "sanitizer/triton": 9, "bench/warm": 24, "train/both": 9, "tests/rest": 31,
    **{f"bench/{family}": record.gpu_seconds[1] for family, record in registry.FAMILIES.items()},
    "bench/report": 7,
}  # fmt: skip
SHARE = 60  # seconds of a process of tests, about
STATE = ROOT / ".gpu"
SANITIZER_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin")
FAMILIES = {family: [b for b in record.cuda if b != "reference"] for family, record in registry.FAMILIES.items()}
BACKENDS = sorted({backend for names in FAMILIES.values() for backend in names})


@dataclass(frozen=True)
class Command:
    """Processes: argument lists by name."""

    name: str  # part/command
    processes: dict[str, list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()  # that must be there

    @property
    def part(self) -> str:
        return self.name.split("/")[0]

    @property
    def seconds(self) -> int:
        return SECONDS[self.name]

    @property
    def checks(self) -> bool:
        """Whether it runs beside others: nothing is timed."""
        return self.part in ("tests", "sanitizer", "train") or self.name == "bench/warm"

    def missing(self) -> str | None:
        """Why it can't run here."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        absent += [argv[0] for argv in self.processes.values() if shutil.which(argv[0]) is None]
        return f"there is no {', '.join(dict.fromkeys(absent))}" if absent else None


def named_after_backend(path: Path) -> bool:
    """Whether a file of tests is about one backend of a family: test_triton_centers.py."""
    return path.stem in {f"test_{backend}_{family}" for backend in BACKENDS for family in FAMILIES}


def test_files() -> dict[str, list[str]]:
    """Files with tests for a device, by family; the others are "rest"."""
    files: dict[str, list[str]] = {name: [] for name in (*FAMILIES, "rest")}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.relative_to(ROOT).as_posix()
        takes_backend = re.search(r"def test_\w+\([^)]*\bbackend\b|mark\.gpu", path.read_text())
        if takes_backend or named_after_backend(path):
            files[next((family for family in FAMILIES if family in name), "rest")].append(name)
    return {name: found for name, found in files.items() if found}


def plan(out: Path, cores: int) -> list[Command]:
    """The commands of a visit."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-vv", "-p", "no:cacheprovider"]
    build = [python, "setup.py", "build_ext", "--inplace", "--force"]  # ninja compiles what changed, headers too
    small = {
        f"{backend}-{family}": [python, "-m", "benchmarks.harness.small_cases", backend, family]
        for family, names in FAMILIES.items()
        for backend in names
    }
    commands = [
        Command("build/extension", {"setup": build}, {"METRICSEG_BUILD_CUDA": "1"}, ("setuptools",)),
        Command("build/report", {"report": [python, "-m", "metricseg_kernels"]}),
        Command("tests/small", small, packages=("pytest",)),
    ]

    single = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    for name, files in test_files().items():
        test = [*pytest, "-p", "benchmarks.harness.device_tests", "--no-summary", *files, "--share"]
        wanted = min(cores, -(-16 * SECONDS[f"tests/{name}"] // SHARE))
        processes = {str(i): [*test, f"{i}/{wanted}"] for i in range(1, wanted + 1)}
        commands.append(Command(f"tests/{name}", processes, single, ("pytest",)))

    needed = ("pytest", "pytest_benchmark")
    warm = {str(i): [python, "-m", "benchmarks.harness.warm_caches", f"{i}/{cores}"] for i in range(1, cores + 1)}
    commands.append(Command("bench/warm", warm, single, needed))
    rows = {family: str(out / f"rows-{family}.jsonl") for family in FAMILIES}
    for family, kept in rows.items():
        race = [*pytest, f"benchmarks/bench_{family}.py", "--benchmark-only", "--benchmark-columns=min,median,rounds"]
        commands.append(Command(f"bench/{family}", {"rows": race}, {"METRICSEG_BENCH_ROWS": kept}, needed))
    report = [python, "-m", "benchmarks.harness.report", *rows.values(), "--out", str(out)]
    commands.append(Command("bench/report", {"report": report}, packages=("matplotlib",)))

    places = os.pathsep.join((os.environ.get("PATH", ""), *SANITIZER_PLACES))
    sanitizer = shutil.which("compute-sanitizer", path=places) or "compute-sanitizer"
    checker = [sanitizer, "--error-exitcode", "9", "--report-api-errors", "no"]
    for backend in BACKENDS:
        checks, ours = ["memcheck"], []
        if backend == "cuda":
            checks += ["racecheck", "synccheck"]
            ours = ["--kernel-name", "kns=metricseg"]  # the namespace, in the mangled names
        checked = {
            f"{check}-{name}": [*checker, "--tool", check, *ours, *argv]
            for check in checks
            for name, argv in small.items()
            if name.startswith(backend)
        }
        # without torch's caching allocator every tensor is an allocation of its own, whose ends the tools then see
        commands.append(Command(f"sanitizer/{backend}", checked, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))

    train = {
        "demo": [python, "-m", "metricseg.demo", "--out", str(out / "demo")],
        "bf16-mixed": [python, "-m", "benchmarks.camvid", "scenes"],
    }
    needed = ("lightning", "timm", "torchvision", "torchmetrics", "matplotlib", "safetensors", "tqdm")
    commands.append(Command("train/both", train, packages=needed))
    return sorted(commands, key=lambda command: list(SECONDS).index(command.name))


@dataclass
class Process:
    """One that was started."""

    popen: subprocess.Popen[bytes]
    log: Path
    start: float


def start(command: Command, name: str, logs: Path) -> Process:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = (str(ROOT), environment.get("PYTHONPATH"))
    environment |= {
        "PATH": os.pathsep.join((sysconfig.get_path("scripts"), environment.get("PATH", ""))),  # ninja
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(STATE / "cache" / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(STATE / "cache" / "inductor"),
        **command.environment,
    }
    path = logs / f"{command.name.replace('/', '-')}-{name}.log"
    with path.open("w") as log:
        popen = subprocess.Popen(
            command.processes[name], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,
        )  # fmt: skip
    return Process(popen, path, time.monotonic())


def run(commands: Sequence[Command], seconds: float, at_once: int, logs: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the processes of all commands; at most so many at once, in order. Ends them when the time is over.

    Yields a command's name and {"status": "running"} when its first process starts, and, when its last has ended,
    {"status", "seconds" from first to last, "limit", "core_seconds": sum over processes, "processes": the last line of
    each}.
    """
    begin = time.monotonic()
    waiting = [(command, name) for command in commands for name in command.processes]
    running: dict[tuple[str, str], Process] = {}
    said: dict[str, dict[str, str]] = {command.name: {} for command in commands}
    first, busy = {}, dict.fromkeys(said, 0.0)
    try:
        while waiting or running:
            late = time.monotonic() > begin + seconds
            while waiting and (late or len(running) < at_once):
                command, name = waiting.pop(0)
                if command.name not in first:
                    first[command.name] = time.monotonic()
                    yield command.name, {"status": "running"}
                if late:
                    said[command.name][name] = "timed out: not begun"
                else:
                    running[command.name, name] = start(command, name, logs)
            for (command_name, name), process in list(running.items()):
                if process.popen.poll() is None and not late:
                    continue
                del running[command_name, name]
                end(process)
                code = process.popen.returncode
                state = "timed out" if late else f"status {code}" if code else "passed"
                lines = process.log.read_text(errors="replace").split("\n")
                last = next((line.strip(" =") for line in reversed(lines) if line.strip()), "")[:200]
                said[command_name][name] = f"{state}: {last}"
                busy[command_name] += time.monotonic() - process.start
            for command in commands:
                if len(said.get(command.name, ())) == len(command.processes):
                    lines = said.pop(command.name)
                    states = {line.split(":")[0] for line in lines.values()}
                    status = "timed out" if "timed out" in states else "failed" if states - {"passed"} else "passed"
                    took = round(time.monotonic() - first[command.name], 1)
                    yield command.name, {"status": status, "seconds": took, "limit": round(seconds),
                                         "core_seconds": round(busy[command.name]), "processes": lines}  # fmt: skip
            time.sleep(0.02)
    finally:
        for process in running.values():
            end(process)


def end(process: Process) -> None:
    """With all processes that it started."""
    if process.popen.poll() is None:
        os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()


def write(path: Path, content: Any) -> None:
    """Whole or not at all, whenever this process is killed."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)


def machine_record() -> dict[str, Any]:
    from benchmarks.harness import machine

    return machine.record()


def visit(
    commands: Sequence[Command],
    out: Path,
    state: Path,
    again: bool = False,
    device: bool = True,
    seconds: int | None = None,
    cores: int = 16,
) -> int:
    """Run what has not passed yet, in so many seconds (TOTAL); the exit status. `device`: whether there is one."""
    (out / "logs").mkdir(parents=True, exist_ok=True)
    state.mkdir(parents=True, exist_ok=True)
    kept = state / "visit.json"
    entries: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if again:
        entries = {name: entry for name, entry in entries.items() if name not in {c.name for c in commands}}
    about, deadline = machine_record(), time.monotonic() + (seconds or TOTAL)

    def note(**entry: Any) -> None:
        entries.update(entry)
        write(kept, entries)
        write(out / "summary.json", {"machine": about, "commands": entries})

    def tell(command: Command) -> None:
        entry = entries[command.name]
        took = f"in {entry['seconds']} s" if "seconds" in entry else entry["reason"]
        print(f"{command.name:20} {entry['status']}", took, flush=True)
        for name, line in entry.get("processes", {}).items():
            if entry["status"] != "passed" and not line.startswith("passed"):
                print(f"    {name}: {line}", flush=True)

    note()
    left, named = [], {command.name: command for command in commands}
    for command in commands:
        reason = command.missing() if device else "torch sees no CUDA device"
        # the build always runs: it compiles only what has changed
        if entries.get(command.name, {}).get("status") == "passed" and command.part != "build":
            print(f"{command.name:20} passed before", flush=True)
        elif reason is not None:
            note(**{command.name: {"status": "missing", "reason": reason}})
            tell(command)
        else:
            left.append(command)
    while left:
        wave = [c for c in left if c.checks] if left[0].checks else left[:1]
        left = [c for c in left if c not in wave]
        later = sum(command.seconds for command in left)
        for name, entry in run(wave, max(1.0, deadline - time.monotonic() - later), cores, out / "logs"):
            note(**{name: entry})
            if entry["status"] != "running":
                tell(named[name])
    print(f"results: {out}")
    statuses = {entries[command.name]["status"] for command in commands}
    return 1 if statuses - {"passed", "missing"} else 2 if "missing" in statuses else 0


def describe(commands: Sequence[Command], cores: int) -> str:
    """The plan as text."""
    lines = []
    for command in commands:
        first, *others = command.processes.values()
        lines.append(f"{command.name:20} {command.seconds:4} s  {len(others) + 1:2} processes: {' '.join(first)}")
    total = sum(command.seconds for command in commands)
    return "\n".join([*lines, f"{'sum':20} {total:4} s  of {TOTAL} s, on {cores} cores"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu-visit")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts or commands")
    parser.add_argument("--seconds", type=int, default=TOTAL, help="for all commands together")
    parser.add_argument("--again", action="store_true", help="run what passed before as well")
    parser.add_argument("--plan", action="store_true", help="print the commands of a machine of 16 cores, and run none")
    arguments = parser.parse_args()
    cores = 16 if arguments.plan else len(os.sched_getaffinity(0))
    commands = plan(arguments.out.resolve(), cores)
    if arguments.only:
        unknown = set(arguments.only) - {name for c in commands for name in (c.part, c.name)}
        if unknown:
            parser.error(f"no part or command is named {', '.join(sorted(unknown))}")
        commands = [c for c in commands if {c.part, c.name} & set(arguments.only)]
    if arguments.plan:
        print(describe(commands, cores))
        return 0
    import torch

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that run() ends its processes
    return visit(
        commands, arguments.out.resolve(), STATE, arguments.again, torch.cuda.is_available(), arguments.seconds, cores
    )


if __name__ == "__main__":
    sys.exit(main())
