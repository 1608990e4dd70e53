"""The project's docstrings as reStructuredText: formulas by indentation, sections by a colon, `names` in backticks,
which are links if the API pages have them. Everything else is text, so `|x|`, `x_` and `*` mean themselves.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any

from sphinx.application import Sphinx

MODULES = ("metricseg_kernels", "metricseg.losses", "metricseg.layers", "metricseg.models", "metricseg.data")
BASES = (
    "metricseg.losses.embedding.EmbeddingLoss",
    "metricseg.losses.pixel_contrast.ContrastLoss",
    "metricseg.models.backbone.Backbone",
)
HOOKS = ("compute", "extra_repr")  # for subclasses, and for print
SECTIONS = {"Args:": "Arguments", "Returns:": "Returns", "Raises:": "Errors"}


@cache
def public() -> dict[str, str]:
    """Where the API pages have a class or function: by its name, and by that of its module before it."""
    found = {path.rpartition(".")[2]: path for path in BASES}
    for module in MODULES:
        exports = vars(importlib.import_module(module))
        names = [name for name in exports["__all__"] if callable(exports[name])]
        found |= {key: f"{module}.{name}" for name in names for key in (name, f"{module}.{name}")}
    return found


def code(part: str) -> str:
    return f":py:obj:`{part} <{public()[part]}>`" if part in public() else f"``{part}``" if part else ""


def text(line: str) -> str:
    """One line with the backticks of code doubled, and all other markup escaped."""
    parts = line.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([\\*|`]|_(?!\w))", r"\\\1", line)
    escaped = [re.sub(r"([\\*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
    spans = [*map(code, parts[1::2]), ""]
    return "".join(piece for pair in zip(escaped, spans, strict=True) for piece in pair)


def section(name: str, lines: list[str]) -> list[str]:
    """A field of entries `name: text`, each a line with deeper ones that continue it; or of plain text."""
    entries: list[str] = []
    for line in lines:
        if (line.startswith(" ") and entries) or not line:
            entries[-1:] = [f"{entries[-1]} {line.strip()}".rstrip()] if entries else []
        else:
            entries.append(line)
    named = [re.fullmatch(r"([\w, ]+): (.*)", entry) for entry in entries]
    if name == "Returns" or not all(named):
        return [f":{name}: {text(' '.join(entries))}", ""]
    return [f":{name}:", *(f"   - **{text(m[1])}**: {text(m[2])}" for m in named if m), ""]


def convert(lines: list[str]) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        if line in SECTIONS:
            end = next((j for j in range(i + 1, len(lines)) if lines[j] and not lines[j].startswith(" ")), len(lines))
            out += ["", *section(SECTIONS[line], [inner[4:] for inner in lines[i + 1 : end]])]
            i = end
            continue
        if line.startswith("    ") and (not out or not out[-1]):
            end = next((j for j in range(i, len(lines)) if lines[j] and not lines[j].startswith(" ")), len(lines))
            out += ["::", "", *lines[i:end], ""]
            i = end
            continue
        out.append(text(line.strip() if line.startswith("    ") else line))
        i += 1
    return out


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = convert(lines)


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field")
    return True if field or name.rpartition(".")[2] in HOOKS else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
