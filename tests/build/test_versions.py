"""The version, which stands in one place, and what it says about deprecated names."""

from __future__ import annotations

import re

from places import ROOT

from metricseg_kernels.version import __version__


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_the_version_is_semantic_and_opens_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(-?(a|b|rc)\d+)?", __version__)
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None and first[1] == __version__


def test_the_version_stands_in_one_place() -> None:
    files = [ROOT / "pyproject.toml", ROOT / "setup.py", *ROOT.glob("metricseg*/**/*.py"), *ROOT.glob("csrc/**/*.*")]
    assigned = re.compile(r"^\s*(__version__|version|VERSION)\s*=\s*[\"'][\d.]+", re.MULTILINE)
    found = [path.relative_to(ROOT).as_posix() for path in files if assigned.search(path.read_text())]
    assert found == ["metricseg_kernels/version.py"]


def test_no_name_outlives_its_removal() -> None:
    found = {}
    for path in ROOT.glob("metricseg*/**/*.py"):
        for removal in re.findall(r"removal=\"([\d.]+)\"", path.read_text()):
            found[path.relative_to(ROOT).as_posix()] = removal
    assert "metricseg_kernels/contrast/arguments.py" in found
    assert {path: removal for path, removal in found.items() if numbers(removal) <= numbers(__version__)} == {}
