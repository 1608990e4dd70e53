"""What the Triton launchers ask for, compiled for sm_80 and sm_90 without a GPU, against resource budgets.

Every 72nd call of each family's table, or every METRICSEG_LAUNCHES-th; the sessions of noxfile.py take all.
"""

from __future__ import annotations

import os

import launches
import pytest

EVERY = os.environ.get("METRICSEG_LAUNCHES", "72")
TABLES = ("all", "recorded") if os.environ.get("METRICSEG_RECORD") else ("all",)


@pytest.mark.parametrize("capability", sorted(launches.SHARED_LIMIT))
@pytest.mark.parametrize("table", TABLES)
def test_every_launch_fits_the_device(table: str, capability: int) -> None:
    print(launches.in_compiling_process("-m", "launches", table, str(capability), "-q", "--every", EVERY))
