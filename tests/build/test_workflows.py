"""The workflows of GitHub Actions against what they name; noxfile.py's session `workflows` runs actionlint on them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from places import ROOT

yaml = pytest.importorskip("yaml")

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml")) if (ROOT / ".github").exists() else []
if not FILES:
    pytest.skip("this copy has no workflows", allow_module_level=True)


def steps() -> list[dict[str, Any]]:
    return [
        step for file in FILES for job in yaml.safe_load(file.read_text())["jobs"].values() for step in job["steps"]
    ]


def test_actions_are_pinned_by_major_version() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used and [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", name)] == []


def test_no_secret_and_few_permissions() -> None:
    for file in FILES:
        text = file.read_text()
        assert "secrets" not in text
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {"contents": "read"}
        granted = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
        assert granted == {"publish": {"id-token": "write"}}
        assert workflow["jobs"]["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"


def test_commands_exist() -> None:
    """Targets of make, sessions of nox, scripts."""
    script = "\n".join(step["run"] for step in steps() if "run" in step)
    targets = set(re.findall(r"\bmake (\w+)", script))
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)), targets
    sessions = set(re.findall(r"nox -s ([\w ]+)", script)[0].split())
    assert sessions <= set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE)), (
        sessions
    )
    assert (ROOT / ".ci" / "run").exists() and ".ci/run" in script
