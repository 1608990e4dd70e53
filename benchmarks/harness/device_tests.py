"""A pytest plugin for a machine with a device: the tests that run on it, and one process's share of them.

    pytest FILES -p benchmarks.harness.device_tests --share 3/16

A test runs on the device if it has the marker gpu, if the name of a device backend is one of its parameters, or if its
file is named after one (test_triton_<family>.py). Shares are interleaved: neighbors take about equally long. What
people train in comes first, fp64 and fp16 last: a run that is killed has covered the more of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from benchmarks.harness import gpu

os.environ["METRICSEG_COLLECT"] = "device"  # without one too, so that the tests of a visit can be counted


def runs_on_device(item: pytest.Item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    named = any(isinstance(value, str) and value in gpu.BACKENDS for value in parameters)
    return named or item.get_closest_marker("gpu") is not None or gpu.named_after_backend(item.path)


def comes_last(item: pytest.Item) -> bool:
    return hasattr(item, "callspec") and item.callspec.params.get("dtype") in (torch.float64, torch.float16)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", default="1/1", metavar="I/N", help="the I-th of N shares of the tests on a device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    which, shares = map(int, config.getoption("share").split("/"))
    on_device = sorted(filter(runs_on_device, items), key=comes_last)
    if not on_device:
        raise pytest.UsageError("none of these tests runs on a device")
    config.hook.pytest_deselected(items=items)
    items[:] = on_device[which - 1 :: shares]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Write a failure when it happens: a run that is killed comes to no summary. End where the device takes no more."""
    report = yield
    if report.failed:
        terminal = item.config.pluginmanager.get_plugin("terminalreporter")
        terminal.write_line("")
        terminal.write_line(report.longreprtext)
        if (reason := lost_device()) is not None:
            item.session.shouldstop = reason
    return report


def lost_device() -> str | None:
    """What every later call would raise, after an illegal address in a kernel."""
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return None


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """More shares than tests: an empty share is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
