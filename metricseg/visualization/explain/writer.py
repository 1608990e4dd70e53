"""Write the explanation of pictures: find what to explain, go on after an interruption, and leave other files alone.

index.html, explain.css, explain.js     pictures/<name>.html, .jpg, .png (overview), _labels.png, _small.jpg
explanation.json: list of the files     sources/<number>.jpg: training pictures, each once
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from metricseg.data import build_dataset
from metricseg.data.base import IGNORE
from metricseg.data.module import SegmentationData
from metricseg.data.stream import WholePictures
from metricseg.models.segsort import SegSort
from metricseg.training.retrieval import check_same, fingerprint
from metricseg.visualization.explain import pages
from metricseg.visualization.explain.folder import ExplanationFolder
from metricseg.visualization.explain.overview import overview
from metricseg.visualization.explain.segments import Explainer, Explanation, short_name
from metricseg.visualization.pictures import colors, overlay

SIDE, SMALL = 960, 480  # longest side of a picture on a page, and in the index, in pixels


def explain(
    model: SegSort,
    trainer: L.Trainer,
    data: SegmentationData,
    out: str | Path,
    pictures: int | str | Sequence[str] = 8,
    overwrite: bool = False,
) -> ExplanationFolder:
    """Explain validation pictures with the bank of the network, which is from a file, in the folder `out`.

    `pictures` is a number of pictures, evenly spaced, 0 for all, or names: paths, file names, or file names without
    their ending. If it is interrupted, the same call goes on with the next picture.

    Raises ValueError if the bank is empty or another, see `check_same`, or for a picture that is not there;
    FileExistsError, see `ExplanationFolder`.
    """
    bank = model.bank
    bank.check_filled()
    check_same(model, trainer, data.bank_pictures(len(bank.names))[2])
    split = build_dataset(data.dataset, data.val_split)
    files = getattr(split, "images", None)
    names = [str(files[k]) if isinstance(files, Sequence) else f"{data.val_split} {k}" for k in range(len(split))]
    chosen = choose(names, pictures)
    key = {
        "weights": fingerprint(model),
        "bank": hashlib.sha256(Path(str(bank.file)).read_bytes()).hexdigest(),
        "neighbors": model.neighbors,
        "pictures": [names[k] for k in chosen],
    }
    writer = Writer(ExplanationFolder(out, key, overwrite), data, Explainer(model, trainer, data), key["pictures"])
    samples = WholePictures(split, data.prepare)
    quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
    for place, k in enumerate(tqdm(chosen, desc="explain", unit="picture", disable=quiet)):
        if writer.slugs[place] not in writer.folder.done:
            image, labels = samples[k]
            writer.write(place, writer.explainer.explain(names[k], pixels(split[k][0]), image, labels))
    writer.write_index()
    writer.folder.save(finished=True)
    if lost := len(writer.explainer.missing):
        warnings.warn(
            f"{lost} segments of training pictures were not found again and have no outline: the bank was built on "
            "another device, or from pictures that have changed",
            stacklevel=2,
        )
    return writer.folder


def choose(names: Sequence[str], pictures: int | str | Sequence[str]) -> list[int]:
    """Places in `names` of the pictures to explain, see `explain`.

    Raises ValueError for a negative number, or a name that is not there.
    """
    total = len(names)
    if isinstance(pictures, int):
        if pictures < 0:
            raise ValueError(f"pictures is {pictures}; it takes a number >= 0, or names of pictures")
        return [k * total // pictures for k in range(pictures)] if 0 < pictures < total else list(range(total))
    chosen = []
    for wanted in [pictures] if isinstance(pictures, str) else pictures:
        found = [k for k, name in enumerate(names) if wanted in (name, Path(name).name, short_name(name))]
        if not found:
            raise ValueError(f"pictures has {wanted!r}; the validation data has {', '.join(names[:3])}, ...")
        chosen += [k for k in found if k not in chosen]
    return chosen


def slugs_of(names: Sequence[str]) -> list[str]:
    """A file name without ending for each picture, all different, also where case does not count."""
    slugs: list[str] = []
    for name in names:
        slug = plain = re.sub(r"[^\w.-]+", "_", short_name(name), flags=re.ASCII).strip("._") or "picture"
        number = 1
        while slug.lower() in {other.lower() for other in slugs}:
            number += 1
            slug = f"{plain}-{number}"
        slugs.append(slug)
    return slugs


def pixels(image: torch.Tensor) -> np.ndarray:
    """Picture [3, H, W] of a data set as uint8 [H, W, 3]."""
    return np.ascontiguousarray(F.to_dtype(image, torch.uint8, scale=True).permute(1, 2, 0).numpy())


def encoded(image: Image.Image, longest: int, kind: str = "JPEG") -> bytes:
    """A file of an image, made smaller if its longest side is longer."""
    file, factor = io.BytesIO(), longest / max(image.size)
    if factor < 1:
        way = Image.Resampling.LANCZOS if kind == "JPEG" else Image.Resampling.NEAREST
        image = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), way)
    image.save(file, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return file.getvalue()


class Writer:
    """Writes one picture after the other into `folder`; `names` are those of all of them."""

    def __init__(self, folder: ExplanationFolder, data: SegmentationData, explainer: Explainer, names: Sequence[str]):
        self.folder, self.data, self.explainer = folder, data, explainer
        self.slugs = slugs_of(names)
        bank = explainer.model.bank
        training, self.chosen, self.sources = data.bank_pictures(len(bank.names))
        self.training: Any = training.data
        self.read = lru_cache(maxsize=64)(lambda number: pixels(self.training[self.chosen[number]][0]))
        self.folder.write({name: pages.asset(name) for name in pages.ASSETS})

    def write(self, place: int, explained: Explanation) -> None:
        """Write the files of a picture, and the index of those that are done."""
        slug, palette, classes = self.slugs[place], self.data.palette, self.data.classes
        found, table = self.explainer.sources, colors(palette)
        picture, base = Image.fromarray(explained.picture), f"{pages.PICTURES}/{slug}"
        small = np.array(picture.resize(explained.labels.shape[::-1]))
        contents = {f"{base}.jpg": encoded(picture, SIDE)}
        truth = None
        if (labeled := explained.labels != IGNORE).any():
            truth = f"{slug}_labels.png"
            shown = np.dstack([table[explained.labels], 255 * labeled]).astype(np.uint8)
            contents[f"{pages.PICTURES}/{truth}"] = encoded(Image.fromarray(shown), SIDE, "PNG")
        data = pages.page_data(explained, found, self.sources, classes, palette, f"{slug}.jpg", truth)
        before, after = ["", *self.slugs][place], [*self.slugs, ""][place + 1]
        contents[f"{base}.html"] = pages.picture_page(explained, data, slug, before, after).encode()
        contents[f"{base}.png"] = overview(explained, found, self.sources, self.read, classes, palette)
        contents[f"{base}_small.jpg"] = encoded(Image.fromarray(overlay(small, explained.predicted, palette)), SMALL)
        for number in data["sources"]:
            if (name := f"{pages.SOURCES}/{number}.jpg") not in self.folder.files:
                contents[name] = encoded(Image.fromarray(self.read(number)), SIDE)
        self.folder.write(contents)
        size = Image.open(io.BytesIO(contents[f"{base}_small.jpg"])).size
        card = {"slug": slug, "name": short_name(explained.name), "facts": pages.facts_of(explained), "size": size}
        self.folder.done[slug] = card
        self.write_index()

    def write_index(self) -> None:
        """Write the index of the pictures that are done, in their order."""
        bank = self.explainer.model.bank
        cards = [self.folder.done[slug] for slug in self.slugs if slug in self.folder.done]
        facts = [
            f"{len(cards)} pictures",
            f"{len(bank):,} prototypes of {len(bank.names):,} training pictures",
            f"{self.explainer.model.neighbors} neighbors vote",
        ]
        page = pages.index_page("Segments by retrieval", facts, cards)
        self.folder.write({"index.html": page.encode()})
