"""Scripts of torch.distributed: a process for each rank, which has imported torch already."""

from __future__ import annotations

import os
import runpy
import socket
import sys
from multiprocessing import connection
from pathlib import Path

from benchmarks.harness.memory import FreshProcesses


def run_ranks(processes: FreshProcesses, world: int, folder: Path, script: str, *arguments: str) -> str:
    """Run a script as torchrun does, log each rank to a file in the folder, and return the output of all ranks.

    Raises AssertionError with that output if a rank fails, or if none ends within 240 s.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in range(world)]
    started = [
        processes.context.Process(target=_run, args=(rank, world, port, log, script, arguments))
        for rank, log in enumerate(logs)
    ]
    for process in started:
        process.start()
    while running := [process.sentinel for process in started if process.is_alive()]:
        if not connection.wait(running, timeout=240) or any(process.exitcode for process in started):
            break
    for process in started:
        process.kill()
        process.join()
    output = "".join(log.read_text() for log in logs if log.exists())
    assert not any(process.exitcode for process in started), output
    return output


def _run(rank: int, world: int, port: int, log: Path, script: str, arguments: tuple[str, ...]) -> None:
    with log.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="none", OMP_NUM_THREADS="1")
    os.environ.update({f"{local}RANK": str(rank) for local in ("", "LOCAL_")})
    os.environ.update({f"{local}WORLD_SIZE": str(world) for local in ("", "LOCAL_")})
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
