"""Names in the cells of tables may break after a mark, so that tables fit a phone."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform


class Breaks(SphinxPostTransform):
    default_priority = 900
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        literals = [name for cell in self.document.findall(nodes.entry) for name in cell.findall(nodes.literal)]
        for literal in literals:
            head, *rest = re.split(r"(?<=[_=|./(,])(?=\w)", literal.astext())
            literal.children = []
            literal += nodes.Text(head)
            for part in rest:
                literal += [nodes.raw("", "<wbr>", format="html"), nodes.Text(part)]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(Breaks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
