"""Sphinx configuration; `make docs` builds the site.

The source is the whole repository, so that pages link to results, CONTRIBUTING and CHANGELOG by their real paths.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project = "metricseg"
author = copyright = "metricseg contributors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "extensions.docstrings",
    "extensions.drawn",
    "extensions.mathml",
    "extensions.measured",
    "extensions.tables",
]

root_doc = "docs/index"
include_patterns = ["docs/**.md", "benchmarks/results/**.md", "CHANGELOG.md", "CONTRIBUTING.md", "RELEASING.md"]
exclude_patterns = [".*", "build", "csrc", "metricseg", "metricseg_kernels", "tests", "benchmarks/results/gpu-visit"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True}
add_module_names = False

highlight_language = "none"

html_theme = "furo"
html_title = "metricseg"
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]


def redirect(app, error) -> None:
    """The folder of the site opens at its first page."""
    page = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
    (Path(app.outdir) / "index.html").write_text(page)


def setup(app) -> None:
    app.connect("build-finished", redirect)
