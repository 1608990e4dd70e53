"""The visit to a GPU machine, without one: what it would run, that it keeps what it came to, and what it says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT

from benchmarks.harness import gpu, race
from metricseg_kernels.core.registry import FAMILIES

PYTHON = [sys.executable, "-c"]
PLUGIN = ("-p", "benchmarks.harness.device_tests", "-p", "no:cacheprovider")

pytest_plugins = ["pytester"]


def in_tree(*command: str) -> subprocess.CompletedProcess:
    """A Python command at the root, as the visit runs it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_plan_fits_and_has_every_family() -> None:
    commands = {command.name: command for command in gpu.plan(Path("out"), cores=16)}
    assert set(commands) == set(gpu.SECONDS) and sum(gpu.SECONDS.values()) < gpu.TOTAL
    small = commands["tests/small"].processes
    for family, record in FAMILIES.items():
        assert (ROOT / "benchmarks" / f"bench_{family}.py").exists() and f"bench/{family}" in commands
        assert f"tests/{family}" in commands
        for backend in set(record.cuda) - {"reference"}:
            assert small[f"{backend}-{family}"][-2:] == [backend, family]
            assert any(name.endswith(f"-{backend}-{family}") for name in commands[f"sanitizer/{backend}"].processes)
    printed = in_tree("-m", "benchmarks.harness.gpu", "--plan").stdout
    assert all(name in printed for name in commands) and f"of {gpu.TOTAL} s" in printed


def test_no_test_of_a_device_is_left_out() -> None:
    """pytest's own collection of the whole tree, against the files of the plan."""
    whole = in_tree("-m", "pytest", "tests", *PLUGIN, "--collect-only", "-qq")
    per_file = dict(re.findall(r"^(\S+): (\d+)$", whole.stdout, re.MULTILINE))
    planned = [file for files in gpu.test_files().values() for file in files]
    assert per_file and set(per_file) <= set(planned) and len(planned) == len(set(planned)), whole.stdout + whole.stderr
    assert not {name for name in per_file if "compile" in name or "budgets" in name or "cuda_host" in name}


def test_shares_make_up_the_whole(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("backend", ["reference", "cpu", "triton", "cuda"])
        @pytest.mark.parametrize("size", [1, 2, 3])
        def test_backends(backend, size):
            assert size != 3, "too large"

        def test_of_the_host():
            raise AssertionError
        """
    )
    shares = [pytester.runpytest(*PLUGIN, "--share", f"{i}/4", "--no-summary") for i in (1, 2, 3, 4)]
    counts = [share.parseoutcomes() for share in shares]
    assert [sum(count.get(k, 0) for k in ("passed", "failed")) for count in counts] == [2, 2, 1, 1]
    assert sum(count.get("failed", 0) for count in counts) == 2
    assert sum("too large" in line for share in shares for line in share.outlines if line.startswith("E  ")) == 2


def test_commands_are_skipped_repeated_and_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [
        gpu.Command("a/passing", {"one": [*PYTHON, "print('here')"], "two": [*PYTHON, "print('there')"]}),
        gpu.Command("a/failing", {"exit": [*PYTHON, "print('why'); raise SystemExit(3)"]}),
        gpu.Command("b/endless", {"sleep": [*PYTHON, "import time; time.sleep(60)"], "quick": [*PYTHON, ""]}),
        gpu.Command("b/missing", {"none": ["no-such-tool"]}, packages=("no_such_package",)),
    ]
    monkeypatch.setattr(gpu, "SECONDS", {command.name: 2 for command in commands})
    monkeypatch.setattr(gpu, "TOTAL", 6)
    out, state = tmp_path / "out", tmp_path / "state"
    assert gpu.visit(commands, out, state) == 1
    summary = json.loads((out / "summary.json").read_text())
    entries = summary["commands"]
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "a/passing": "passed", "a/failing": "failed", "b/endless": "timed out", "b/missing": "missing",
    }  # fmt: skip
    assert entries["a/passing"]["processes"] == {"one": "passed: here", "two": "passed: there"}
    assert entries["a/failing"]["processes"] == {"exit": "status 3: why"}
    assert entries["b/endless"]["processes"]["sleep"].startswith("timed out")
    assert 2 <= entries["b/endless"]["limit"] <= 6 and entries["b/endless"]["processes"]["quick"].startswith("passed")
    assert "no_such_package, no-such-tool" in entries["b/missing"]["reason"] and "torch" in summary["machine"]
    assert (out / "logs" / "a-passing-two.log").read_text() == "there\n"
    # in another folder, as if the first had been taken away: what passed is skipped, and still in the summary
    (state / "new").mkdir()
    assert gpu.visit(commands[:1], tmp_path / "new", state) == 0 and gpu.visit(commands[3:], out, state) == 2
    assert list((tmp_path / "new" / "logs").iterdir()) == []
    assert "a/passing" in json.loads((tmp_path / "new" / "summary.json").read_text())["commands"]
    assert gpu.visit(commands[:1], tmp_path / "new", state, again=True) == 0
    assert len(list((tmp_path / "new" / "logs").iterdir())) == 2
    assert gpu.visit(commands[:1], tmp_path / "none", tmp_path / "bare", device=False) == 2


def test_checks_share_the_cores_and_benchmarks_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two at once, in order, across commands."""
    record = tmp_path / "times.txt"
    script = f"""
import sys, time
begin = time.time(); time.sleep(float(sys.argv[2]))
with open({str(record)!r}, "a") as file: print(sys.argv[1], begin, time.time(), file=file)
"""
    process = lambda name, seconds: [*PYTHON, script, name, str(seconds)]  # noqa: E731
    commands = [
        gpu.Command("tests/a", {"1": process("a1", 1.0), "2": process("a2", 0.1)}),
        gpu.Command("train/b", {"1": process("b1", 0.1), "2": process("b2", 0.1)}),
        gpu.Command("bench/c", {"1": process("c1", 0.3)}),
        gpu.Command("bench/d", {"1": process("d1", 0.1)}),
    ]
    monkeypatch.setattr(gpu, "SECONDS", {command.name: 1 for command in commands})
    assert gpu.visit(commands, tmp_path / "out", tmp_path / "state", seconds=100, cores=2) == 0
    times = {name: (float(begin), float(end)) for name, begin, end in map(str.split, record.read_text().splitlines())}
    assert times["a1"][1] - times["a1"][0] >= 1 and max(times["a1"][0], times["a2"][0]) < times["b2"][0]
    assert min(times["c1"][0], times["d1"][0]) > max(times[name][1] for name in ("a1", "a2", "b1", "b2"))
    assert times["c1"][1] < times["d1"][0]
    *_, (name, entry) = gpu.run(commands[:1], -1.0, 2, tmp_path)
    assert name == "tests/a" and entry["status"] == "timed out"
    assert set(entry["processes"].values()) == {"timed out: not begun"}


ENDLESS = """
import os, time
parent = os.getppid()
print("begun")
while os.getppid() == parent:
    time.sleep(0.1)
"""


def test_a_killed_visit_leaves_what_it_came_to(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from benchmarks.harness import gpu
gpu.SECONDS = dict.fromkeys(("a/first", "a/second"), 100)
commands = [gpu.Command("a/first", {{"x": [sys.executable, "-c", "print(1)"]}}),
            gpu.Command("a/second", {{"x": [sys.executable, "-c", {ENDLESS!r}]}})]
gpu.visit(commands, Path({str(tmp_path)!r}), Path({str(tmp_path / "state")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    log, deadline = tmp_path / "logs" / "a-second-x.log", time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text()):
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    entries = json.loads((tmp_path / "summary.json").read_text())["commands"]
    assert entries["a/first"]["status"] == "passed" and entries["a/second"] == {"status": "running"}
    assert log.read_text() == "begun\n" and not list(tmp_path.rglob("*.part"))


def test_small_cases_run() -> None:
    done = in_tree("-m", "benchmarks.harness.small_cases", "reference", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert all(f"reference {family}" in done.stdout for family in FAMILIES)


def test_rows_are_kept_as_they_are_measured(tmp_path: Path) -> None:
    """Of a run that was killed while it wrote one, the others make a report."""
    pytest.importorskip("matplotlib")
    from benchmarks.harness import report

    about = {"device": "cpu", "cpu": "test", "threads": 2, "torch": "2.11.0", "commit": None, "python": "3.12"}
    about["limits"] = {"bytes_per_s": 1e10, "exp_per_s": 1e9, "exp_by": "x", "flops_per_s": {"float32": 1e11}}
    info = {
        "op": "anchors", "shape": "s", "loss": "l", "phase": "step", "contestant": "metricseg cuda", "ours": True,
        "dtype": "float32", "series": None, "peak_mib": 2.0, "times_as_fast_as": {}, "times_limit": 2.0,
        "gradient_error": 1e-7,
    }  # fmt: skip
    row = json.dumps({"extra_info": info, "stats": {"median": 1e-3, "min": 9e-4, "rounds": 7}})
    head = json.dumps({"machine_info": about, "datetime": "2026-01-01T00:00:00"})
    raw = tmp_path / "rows.jsonl"
    raw.write_text(f"{head}\n{row}\n{row[:40]}")
    report.write(report.load(raw), tmp_path)
    assert len(json.loads((tmp_path / "anchors.json").read_text())["rows"]) == 1


def test_torch_compile_sits_out_on_a_gpu_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, eager = (race.Contestant(name, lambda p: p) for name in ("torch.compile", "eager"))
    assert race.why_absent(compiled, "cuda") and not race.why_absent(compiled, "cpu")
    assert race.why_absent(eager, "cuda") is None
    monkeypatch.setenv("METRICSEG_BENCH_COMPILE", "1")
    assert race.why_absent(compiled, "cuda") is None
