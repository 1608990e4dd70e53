"""The pages of an explanation: one for each picture, and an index. They open from disk, without a network.

A page holds its data as JSON, which explain.js draws. Pictures are files beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from metricseg.visualization.explain.outlines import UNITS, Outline
from metricseg.visualization.explain.segments import Explanation, Segment, Source, short_name
from metricseg.visualization.pictures import Palette

ASSETS = ("explain.css", "explain.js")
SOURCES, PICTURES = "sources", "pictures"

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="metricseg explain">
<link rel="icon" href="data:,">
<title>{title}</title>
<link rel="stylesheet" href="{root}explain.css">
</head>
"""

PICTURE = """<body class="picture-page">
<header>
<nav aria-label="Pictures">{links}</nav>
<h1>{name}</h1>
<p class="facts">{facts}</p>
</header>
<noscript><p class="notice">This page needs JavaScript. The overview is in <a href="{overview}">{overview}</a>.</p>
</noscript>
<main>
<section class="scene" aria-label="Picture">
<div class="toolbar">
<div class="views" role="group" aria-label="View">{views}</div>
<label class="order">Order <select id="order"><option value="area">largest first</option>
<option value="certainty">least certain first</option></select></label>
</div>
<div class="frame"><svg id="scene" role="group" aria-label="Segments of the picture"></svg>
<div id="tip" role="status" hidden></div></div>
<ol id="strip" aria-label="Segments"></ol>
<p class="hint"><span class="keys"><kbd>&larr;</kbd> <kbd>&rarr;</kbd> step through the segments.</span>
Select a neighbor to see its whole picture.</p>
</section>
<section id="panel" aria-label="Selected segment" aria-live="polite"></section>
</main>
<dialog id="source" aria-label="Source picture"></dialog>
<script type="application/json" id="data">{data}</script>
<script src="../explain.js"></script>
</body>
</html>
"""

INDEX = """<body class="index-page">
<header>
<h1>{title}</h1>
<p class="facts">{facts}</p>
</header>
<main class="gallery">{cards}</main>
<footer>Each segment has the label that its nearest training segments vote for. Open a picture to see them.</footer>
</body>
</html>
"""

CARD = """<a class="card" href="{link}"><img src="{thumbnail}" alt="" loading="lazy" width="{width}" height="{height}">
<span class="name">{name}</span><span class="facts">{facts}</span></a>
"""


def asset(name: str) -> bytes:
    """A style sheet or script that the pages share."""
    return files(__package__).joinpath(name).read_bytes()


def percent(share: float) -> str:
    """A share in whole percent; only 0 and 1 are 0% and 100%."""
    rounded = round(100 * share)
    return f"{min(max(rounded, 1), 99) if 0 < share < 1 else rounded}%"


def facts_of(explained: Explanation) -> list[str]:
    """Number of segments, and how much of them and of the labeled pixels is right, in words."""
    known = [segment for segment in explained.segments if segment.truth is not None]
    right = sum(segment.truth == segment.label for segment in known)
    facts = [f"{len(explained.segments)} segments"]
    if explained.accuracy is not None:
        facts += [f"{right} of {len(known)} right", f"{percent(explained.accuracy)} of the labeled pixels right"]
    return facts


def shape(outline: Outline) -> dict[str, Any]:
    """A path and its box (left, top, width, height), both in quarters of a cell."""
    left, top, right, bottom = (UNITS * value for value in outline.box)
    return {"path": outline.path(), "box": [left, top, right - left, bottom - top]}


def segment_data(segment: Segment) -> dict[str, Any]:
    """A segment for explain.js."""
    return {
        **shape(segment.outline),
        "anchor": [UNITS * value for value in segment.outline.anchor],
        "label": segment.label,
        "truth": segment.truth,
        "right": segment.right,
        "area": round(segment.area, 5),
        "certainty": round(segment.certainty, 5),
        "votes": sorted(((n, k) for k, n in enumerate(segment.votes) if n), key=lambda vote: (-vote[0], vote[1])),
        "neighbors": [[neighbor.row, round(neighbor.similarity, 4)] for neighbor in segment.neighbors],
    }


def page_data(
    explained: Explanation,
    sources: Mapping[int, Source],
    names: Sequence[str],
    classes: Sequence[str],
    palette: Palette,
    picture: str,
    truth: str | None,
) -> dict[str, Any]:
    """Data of a page for explain.js: segments, rows of the bank that voted, and their pictures, each once."""
    rows = {row: sources[row] for row in sorted(explained.rows())}
    return {
        "size": [UNITS * explained.size[1], UNITS * explained.size[0]],
        "picture": picture,
        "truth": truth,
        "classes": [[name, "#{:02x}{:02x}{:02x}".format(*color)] for name, color in zip(classes, palette, strict=True)],
        "segments": [segment_data(segment) for segment in explained.segments],
        "rows": {
            row: {
                "label": source.label,
                "picture": source.picture,
                "size": [UNITS * source.size[1], UNITS * source.size[0]],
                **(shape(source.outline) if source.outline else {}),
            }
            for row, source in rows.items()
        },
        "sources": {
            number: {"name": short_name(names[number]), "full": names[number], "file": f"../{SOURCES}/{number}.jpg"}
            for number in sorted({source.picture for source in rows.values()})
        },
    }


def picture_page(explained: Explanation, data: Mapping[str, Any], slug: str, before: str, after: str) -> str:
    """The page of one picture; `before` and `after` are the slugs of its neighbors in the index, or empty."""
    links = '<a href="../index.html">All pictures</a>'
    for other, word in ((before, "&lsaquo; previous"), (after, "next &rsaquo;")):
        links += f'<a href="{quote(other)}.html">{word}</a>' if other else f'<span class="off">{word}</span>'
    views = [("predicted", "Prediction"), ("segments", "Segments"), *([("truth", "Labels")] if data["truth"] else [])]
    buttons = "".join(f'<button type="button" data-view="{view}">{word}</button>' for view, word in views)
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no end tag within the script
    name, facts = escape(short_name(explained.name)), escape(" \u00b7 ".join(facts_of(explained)))
    body = PICTURE.format(links=links, name=name, facts=facts, overview=f"{quote(slug)}.png", views=buttons, data=text)
    return HEAD.format(title=name, root="../") + body


def index_page(title: str, facts: Sequence[str], cards: Sequence[Mapping[str, Any]]) -> str:
    """The index; a card has slug, name, facts, and the size of its thumbnail."""
    shown = "".join(
        CARD.format(
            link=f"{PICTURES}/{quote(card['slug'])}.html",
            thumbnail=f"{PICTURES}/{quote(card['slug'])}_small.jpg",
            width=card["size"][0],
            height=card["size"][1],
            name=escape(card["name"]),
            facts=escape(" \u00b7 ".join(card["facts"])),
        )
        for card in cards
    )
    text = escape(" \u00b7 ".join(facts))
    return HEAD.format(title=escape(title), root="") + INDEX.format(title=escape(title), facts=text, cards=shown)
