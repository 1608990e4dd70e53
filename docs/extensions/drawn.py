"""The directive `picture`: what `docs/pictures/<family>.py` draws, inside the page."""

from __future__ import annotations

import base64

import pictures
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Picture(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        drawn, caption = pictures.svg(self.arguments[0])
        figure = nodes.figure()
        figure += nodes.image(uri=f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}", alt=caption)
        figure += nodes.caption("", caption)
        return [figure]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
