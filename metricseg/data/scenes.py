"""A generated data set: no download, and not solved by color."""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from metricseg.data.base import IGNORE, Sample

Array = np.ndarray
KINDS = {
    "striped ellipse": ("ellipse", "stripes"),
    "checked ellipse": ("ellipse", "checks"),
    "striped box": ("box", "stripes"),
    "dotted box": ("box", "dots"),
    "checked wedge": ("wedge", "checks"),
    "dotted wedge": ("wedge", "dots"),
}


class Scenes(Dataset[Sample]):
    """Textured shapes that overlap on a cluttered ground, under uneven light and noise; borders and some patches are
    ignored.

    A class is a shape with a texture, and no shape or texture belongs to one class alone. Colors, scale, angle,
    contrast and place are drawn freely for each object, so neither color nor position determines the class. A sample
    is a pure function of (seed, split, index): image uint8 [3, size, size] and labels uint8 [size, size], 255 along
    borders (2 pixels) and in patches.

    Args:
        split: "train" or "val": two streams that share nothing.
        length: number of samples.
        size: height and width in pixels, at least 32.
        seed: of the whole set.
        objects: (fewest, most) shapes in a picture.
    """

    classes = ("ground", *KINDS)
    palette = ((70, 70, 78), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0))

    def __init__(
        self,
        split: str = "train",
        length: int = 1000,
        size: int = 128,
        seed: int = 0,
        objects: tuple[int, int] = (4, 8),
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f'split is {split!r}; Scenes has "train" and "val"')
        if size < 32:
            raise ValueError(f"size is {size}; it takes at least 32")
        self.split, self.length, self.size, self.seed, self.objects = split, length, size, seed, objects
        self.y, self.x = np.mgrid[:size, :size].astype(np.float32)  # [size, size]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        random = np.random.default_rng((self.seed, self.split == "val", index))
        image, labels = self.ground(random), np.zeros((self.size, self.size), np.uint8)
        for _ in range(random.integers(self.objects[0], self.objects[1] + 1)):
            self.paint(random, image, labels)
        ignored = borders(labels)
        if random.random() < 0.5:
            ignored |= self.shape(random, "ellipse", 0.05, 0.12)[0]
        labels[ignored] = IGNORE
        picture = (self.light(random, image).clip(0, 1) * 255).astype(np.uint8)
        return tv_tensors.Image(torch.from_numpy(picture.transpose(2, 0, 1).copy())), tv_tensors.Mask(
            torch.from_numpy(labels)
        )

    def ground(self, random: np.random.Generator) -> Array:
        """Clutter: a slow blend of two colors under grain, [size, size, 3]."""
        wave = np.zeros_like(self.x)
        for _ in range(3):
            fx, fy, phase = random.uniform(-9, 9), random.uniform(-9, 9), random.uniform(0, 2 * np.pi)
            wave += np.sin((fx * self.x + fy * self.y) / self.size + phase)
        blend = (0.5 + wave / 6)[..., None] + 0.15 * random.standard_normal((self.size, self.size, 1), dtype=np.float32)
        return blend * colour(random) + (1 - blend) * colour(random)

    def paint(self, random: np.random.Generator, image: Array, labels: Array) -> None:
        """Draw one object over the picture."""
        label = int(random.integers(len(KINDS)))
        kind, texture = tuple(KINDS.values())[label]
        inside, u, v = self.shape(random, kind, 0.12, 0.3)
        share = weave(random, texture, u, v)[..., None]
        first, second = contrasting(random)
        image[inside] = (share * first + (1 - share) * second)[inside]
        labels[inside] = label + 1

    def shape(self, random: np.random.Generator, kind: str, low: float, high: float) -> tuple[Array, Array, Array]:
        """(inside [size, size] bool, its own rotated coordinates u and v in pixels); radius from `low` to `high` of
        the picture."""
        cx, cy = random.uniform(0.05, 0.95, 2) * self.size
        angle, radius = random.uniform(0, 2 * np.pi), random.uniform(low, high) * self.size
        aspect = random.uniform(0.65, 1.0)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u = cos * (self.x - cx) + sin * (self.y - cy)
        v = cos * (self.y - cy) - sin * (self.x - cx)
        a, b = u / radius, v / (radius * aspect)
        if kind == "ellipse":
            return a * a + b * b < 1, u, v
        if kind == "box":
            return np.maximum(np.abs(a), np.abs(b)) < 0.85, u, v
        return (b > -0.7) & (b + 1.9 * np.abs(a) < 1.1), u, v

    def light(self, random: np.random.Generator, image: Array) -> Array:
        """A slope of brightness across the picture, a gamma, and sensor noise."""
        angle = random.uniform(0, 2 * np.pi)
        slope = (np.cos(angle) * self.x + np.sin(angle) * self.y) / self.size
        lit = image.clip(0, 1) ** random.uniform(0.7, 1.4) * (random.uniform(0.75, 1.0) + 0.25 * slope)[..., None]
        return lit + random.uniform(0.02, 0.08) * random.standard_normal(image.shape, dtype=np.float32)


def weave(random: np.random.Generator, texture: str, u: Array, v: Array) -> Array:
    """The share of the first color at each pixel, in [0, 1], for a texture of random pitch and phase."""
    pitch = 2 * np.pi / random.uniform(7, 11)
    turn, p, q = random.uniform(0, np.pi), *random.uniform(0, 2 * np.pi, 2)
    along = pitch * (np.cos(turn) * u + np.sin(turn) * v) + p
    across = pitch * (np.cos(turn) * v - np.sin(turn) * u) + q
    if texture == "stripes":
        wave = np.sin(along)
    elif texture == "checks":
        wave = 1.5 * np.sin(along) * np.sin(across)
    else:
        wave = np.sin(along) + np.sin(across) - 0.7
    return (0.5 + 2 * wave).clip(0, 1)


def colour(random: np.random.Generator) -> Array:
    """Any color of medium saturation, [3]."""
    return np.array(colorsys.hsv_to_rgb(random.random(), random.uniform(0.1, 0.8), random.uniform(0.2, 1)), np.float32)


def contrasting(random: np.random.Generator) -> tuple[Array, Array]:
    """Two colors whose brightness differs by at least 0.25, in either order."""
    while True:
        first, second = colour(random), colour(random)
        if abs(first.mean() - second.mean()) > 0.25:
            return first, second


def borders(labels: Array) -> Array:
    """Pixels with a neighbor, to the right or below, of another label, and those neighbors: a band 2 pixels wide."""
    band = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    band[:, 1:] |= across
    band[:, :-1] |= across
    band[1:] |= down
    band[:-1] |= down
    return band
