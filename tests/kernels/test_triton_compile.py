"""What the Triton launchers ask for, compiled for sm_80 and sm_90 without a GPU, against resource budgets.

Every 72nd call of each family's table, or every METRICSEG_LAUNCHES-th; the sessions of noxfile.py take all.
"""

from __future__ import annotations

import os

import launches
import pytest

EVERY = os.environ.get("METRICSEG_LAUNCHES", "72")
RECORDED = ("recorded",) if os.environ.get("METRICSEG_RECORD") else ()


@pytest.mark.parametrize("capability", sorted(launches.SHARED_LIMIT))
@pytest.mark.parametrize("family", (*launches.FAMILIES, *RECORDED))
def test_every_launch_fits_the_device(family: str, capability: int) -> None:
    print(launches.in_compiling_process("-m", "launches", family, str(capability), "-q", "--every", EVERY))
