"""What the Triton launchers ask for, compiled for sm_80 and sm_90 without a GPU, against resource budgets.

A sample of the tables in tests/launches; METRICSEG_LAUNCHES=all takes them whole, as the sessions of noxfile.py do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import launches
import pytest

TESTS = Path(__file__).parent
EVERY = "1" if os.environ.get("METRICSEG_LAUNCHES") == "all" else "12"
RECORDED = ("recorded",) if os.environ.get("METRICSEG_RECORD") else ()


@pytest.mark.parametrize("capability", sorted(launches.SHARED_LIMIT))
@pytest.mark.parametrize("family", (*launches.FAMILIES, *RECORDED))
def test_every_launch_fits_the_device(family: str, capability: int) -> None:
    pytest.importorskip("triton")
    if not launches.tool().exists():
        pytest.skip("this Triton brings no cuobjdump")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ahead = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (ahead, str(TESTS.parent), str(TESTS))))
    command = [sys.executable, "-m", "launches", family, str(capability), "-q", "--every", EVERY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    print(done.stdout)
