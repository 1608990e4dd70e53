"""What the Triton launchers ask for, compiled for sm_80 and sm_90 without a GPU, against resource budgets.

Every 72nd call of each family's table, or every METRICSEG_LAUNCHES-th; the sessions of noxfile.py take all.
"""

from __future__ import annotations

import os
import subprocess
import sys

import launches
import pytest
from places import ROOT, SUPPORT

EVERY = os.environ.get("METRICSEG_LAUNCHES", "72")
TABLES = ("all", "recorded") if os.environ.get("METRICSEG_RECORD") else ("all",)


@pytest.mark.parametrize("capability", sorted(launches.SHARED_LIMIT))
@pytest.mark.parametrize("table", TABLES)
def test_every_launch_fits_the_device(table: str, capability: int) -> None:
    pytest.importorskip("triton")
    if not launches.tool().exists():
        pytest.skip("this Triton brings no cuobjdump")
    paths = filter(None, (os.environ.get("PYTHONPATH"), str(ROOT), str(SUPPORT)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "launches", table, str(capability), "-q", "--every", EVERY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    print(done.stdout)
