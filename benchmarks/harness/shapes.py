"""The shapes that users train with: a set that two CPU cores finish in minutes, and a set worth a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """Logits [batch, classes, *cells] against labels [batch, *labels], of images or volumes."""

    name: str
    batch: int
    classes: int
    cells: tuple[int, ...]
    labels: tuple[int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        sizes = "x".join(map(str, (self.batch, self.classes, *self.cells)))
        target = "" if self.cells == self.labels else "-" + "x".join(map(str, self.labels))
        return f"{self.name}-{sizes}{target}-{self.dtype.replace('float', 'fp').replace('bfp', 'bf')}"

    @property
    def interpolates(self) -> bool:
        return self.cells != self.labels

    @property
    def pixels(self) -> int:
        return self.batch * math.prod(self.labels)

    def smaller(self, factor: float) -> Shape:
        """The same at `factor` times the side length."""
        return replace(self, cells=_scaled(self.cells, factor), labels=_scaled(self.labels, factor))


def _scaled(size: tuple[int, ...], factor: float) -> tuple[int, ...]:
    return tuple(round(length * factor) for length in size)


def _both(shape: Shape) -> tuple[Shape, Shape]:
    return shape, replace(shape, dtype="bfloat16")


CITYSCAPES = Shape("cityscapes", 1, 19, (128, 256), (512, 1024))
ADE20K = Shape("ade20k", 1, 150, (128, 128), (512, 512))
BTCV = Shape("btcv", 1, 14, (24, 24, 24), (96, 96, 96))


@dataclass(frozen=True)
class Set:
    """`main`: for the losses that most people train with; `side`: for the others; `sweep`: one of `main` over size;
    `volumes`: patches of CT scans."""

    main: tuple[Shape, ...]
    side: tuple[Shape, ...]
    sweep: tuple[Shape, ...]
    volumes: tuple[Shape, ...] = ()


CPU = Set(
    main=(
        CITYSCAPES,
        ADE20K,
        Shape("cityscapes", 1, 19, (512, 512), (512, 512)),
        Shape("ade20k", 1, 150, (256, 256), (256, 256)),
    ),
    side=(CITYSCAPES.smaller(0.5),),
    sweep=tuple(CITYSCAPES.smaller(factor) for factor in (0.25, 0.5, 2.0)),
    volumes=(BTCV, replace(BTCV, cells=BTCV.labels)),
)

_CITYSCAPES_8, _ADE20K_16 = replace(CITYSCAPES, batch=8), replace(ADE20K, batch=16)
GPU = Set(
    main=(
        *_both(_CITYSCAPES_8),
        *_both(_ADE20K_16),
        *_both(Shape("cityscapes", 8, 19, (512, 1024), (512, 1024))),
        *_both(Shape("ade20k", 16, 150, (256, 256), (256, 256))),
    ),
    side=_both(_CITYSCAPES_8),
    sweep=tuple(replace(_CITYSCAPES_8.smaller(factor), dtype="bfloat16") for factor in (0.25, 0.5, 2.0)),
)


# what a validation predicts, at the size of its pictures
_PREDICTED = (ADE20K, replace(CITYSCAPES, labels=(1024, 2048)))
PREDICTED_CPU = (*_PREDICTED, BTCV)
PREDICTED_GPU = tuple(replace(shape, batch=8, dtype="bfloat16") for shape in _PREDICTED)


@dataclass(frozen=True)
class Rows:
    """Anchors [anchors, dim] against themselves, or against a bank [bank, dim] that learns nothing."""

    name: str
    anchors: int
    dim: int
    bank: int | None = None
    classes: int = 19
    dtype: str = "float32"
    precision: str = "highest"  # torch.set_float32_matmul_precision

    def __str__(self) -> str:
        dtype = self.dtype.replace("float", "fp").replace("bfp", "bf")
        arithmetic = dtype if self.precision == "highest" else "tf32"
        return f"{self.name}-{self.anchors}x{self.columns}x{self.dim}-{arithmetic}"

    @property
    def columns(self) -> int:
        return self.anchors if self.bank is None else self.bank

    @property
    def pairs(self) -> int:
        return self.anchors * self.columns


# ContrastiveSeg's 1,024 sampled pixels of 256 channels, alone and against its memory; every pixel of a 128 x 256 grid
SAMPLED, MEMORY = Rows("sampled", 1024, 256), Rows("memory", 1024, 256, bank=190_000)
PIXELS, EVERY_PIXEL = Rows("pixels", 8192, 256), Rows("pixels", 65_536, 64)
EUCLIDEAN = Rows("pixels", 2048, 64)


@dataclass(frozen=True)
class ContrastSet:
    """`main`: against the peers; `alone`: too large for them; `euclidean`: for the losses of distances;
    `sweep`: one of `main` over size; `segments`: pixels against prototypes."""

    main: tuple[Rows, ...]
    alone: tuple[Rows, ...]
    euclidean: tuple[Rows, ...]
    sweep: tuple[Rows, ...]
    segments: tuple[Rows, ...]


CONTRAST_CPU = ContrastSet(
    main=(SAMPLED, MEMORY, PIXELS),
    alone=(EVERY_PIXEL,),
    euclidean=(EUCLIDEAN,),
    sweep=tuple(replace(PIXELS, anchors=rows) for rows in (2048, 4096, 16_384)),
    segments=(Rows("segsort", 65_536, 32, bank=1500, classes=21),),
)

_LARGE = replace(PIXELS, anchors=32_768)
CONTRAST_GPU = ContrastSet(
    main=(SAMPLED, MEMORY, replace(_LARGE, dtype="bfloat16"), replace(_LARGE, precision="high")),
    alone=(
        replace(EVERY_PIXEL, anchors=262_144, dtype="bfloat16"),
        replace(EVERY_PIXEL, anchors=262_144, precision="high"),
    ),
    euclidean=(replace(EUCLIDEAN, anchors=16_384),),
    sweep=tuple(replace(PIXELS, anchors=rows, dtype="bfloat16") for rows in (4096, 8192, 16_384, 131_072)),
    segments=(Rows("segsort", 262_144, 64, bank=1500, classes=21, dtype="bfloat16"),),
)


@dataclass(frozen=True)
class Maps:
    """Features [batch, channels, *cells], with labels and predictions [batch, *cells]."""

    name: str
    batch: int
    channels: int
    classes: int
    cells: tuple[int, int]
    dtype: str = "float32"

    def __str__(self) -> str:
        dtype = self.dtype.replace("float", "fp").replace("bfp", "bf")
        return f"{self.name}-{self.batch}x{self.channels}x{self.cells[0]}x{self.cells[1]}-{dtype}"

    @property
    def pixels(self) -> int:
        return self.batch * self.cells[0] * self.cells[1]


# 1,024 anchors are chosen from these
ANCHORS_CPU = (Maps("cityscapes", 8, 256, 19, (128, 256)), Maps("ade20k", 16, 256, 150, (64, 64)))
ANCHORS_GPU = (*ANCHORS_CPU, replace(ANCHORS_CPU[0], dtype="bfloat16"))


# clustered into 25 clusters an image
CLUSTERS_CPU = (Maps("segsort", 8, 32, 19, (64, 128)),)
CLUSTERS_GPU = (Maps("segsort", 8, 32, 19, (128, 256)), Maps("segsort", 8, 32, 19, (128, 256), "bfloat16"))


@dataclass(frozen=True)
class Centers:
    """Features [batch, channels, *cells] against the centers of classes."""

    name: str
    batch: int
    channels: int
    classes: int
    cells: tuple[int, int]
    labels: tuple[int, int] | None = None  # where a loss takes its labels, if not at the features
    dtype: str = "float32"
    precision: str = "highest"  # torch.set_float32_matmul_precision
    layout: str = "nchw"  # nchw, nhwc
    own: bool = False  # centers of each image

    def __str__(self) -> str:
        target = "" if self.labels is None else f"-{self.labels[0]}x{self.labels[1]}"
        dtype = self.dtype.replace("float", "fp").replace("bfp", "bf") if self.precision == "highest" else "tf32"
        extras = ("-nhwc" if self.layout == "nhwc" else "") + ("-own" if self.own else "")
        size = f"{self.batch}x{self.channels}x{self.cells[0]}x{self.cells[1]}"
        return f"{self.name}-{size}{target}-{self.classes}-{dtype}{extras}"

    @property
    def pixels(self) -> int:
        return self.batch * self.cells[0] * self.cells[1]

    @property
    def label_pixels(self) -> int:
        height, width = self.labels or self.cells
        return self.batch * height * width


@dataclass(frozen=True)
class CentersSet:
    """Cosine logits: `main` against every peer, `side` and `sweep`, over size, against eager; `soft` and `hard` class
    centers; `loss`: from the features to a cross-entropy."""

    main: tuple[Centers, ...]
    side: tuple[Centers, ...]
    sweep: tuple[Centers, ...]
    soft: tuple[Centers, ...]
    hard: tuple[Centers, ...]
    loss: tuple[Centers, ...]


# the last features of a network of stride 16, for images of 1024 x 2048
CITYSCAPES_512 = Centers("cityscapes", 2, 512, 19, (64, 128))
ADE20K_512 = replace(CITYSCAPES_512, name="ade20k", classes=150)

CENTERS_CPU = CentersSet(
    main=(CITYSCAPES_512, ADE20K_512),
    side=(
        replace(CITYSCAPES_512, layout="nhwc"),
        replace(CITYSCAPES_512, own=True),
        replace(CITYSCAPES_512, dtype="bfloat16"),
        Centers("ade20k-full", 1, 512, 847, (64, 64)),
        Centers("embedding", 2, 64, 19, (128, 256)),
    ),
    sweep=tuple(replace(CITYSCAPES_512, cells=cells) for cells in ((16, 32), (32, 64))),
    soft=(CITYSCAPES_512, ADE20K_512),
    hard=(CITYSCAPES_512,),
    loss=(replace(CITYSCAPES_512, labels=(512, 1024)), ADE20K_512),
)


def _three(shape: Centers) -> tuple[Centers, Centers, Centers]:
    return shape, replace(shape, dtype="bfloat16"), replace(shape, precision="high")


_CITYSCAPES_512_8 = replace(CITYSCAPES_512, batch=8, cells=(128, 256))
_ADE20K_512_8 = replace(ADE20K_512, batch=8, cells=(128, 256))
_BF16 = replace(_CITYSCAPES_512_8, dtype="bfloat16")
CENTERS_GPU = CentersSet(
    main=(*_three(_CITYSCAPES_512_8), *_three(_ADE20K_512_8)),
    side=(replace(_BF16, layout="nhwc"), replace(_BF16, own=True), replace(_BF16, classes=847, cells=(64, 64))),
    sweep=tuple(replace(_BF16, cells=cells) for cells in ((32, 64), (64, 128))),
    soft=(_BF16, replace(_ADE20K_512_8, dtype="bfloat16")),
    hard=(_BF16,),
    loss=(replace(_BF16, labels=(512, 1024)), replace(_ADE20K_512_8, dtype="bfloat16")),
)


@dataclass(frozen=True)
class Bank:
    """Queries [queries, channels], each against the rows of a bank [rows, channels], of which it gets k."""

    name: str
    queries: int
    rows: int
    channels: int
    k: int
    dtype: str = "float32"

    def __str__(self) -> str:
        dtype = self.dtype.replace("float", "fp").replace("bfp", "bf")
        return f"{self.name}-{self.queries}x{self.rows}x{self.channels}-{self.k}-{dtype}"


# segments of some images against those of Pascal VOC's training set
BANKS = (Bank("segsort", 1000, 265_000, 32, 15),)


@dataclass(frozen=True)
class Upsampling:
    """Features [batch, channels, *cells] to pixels [batch, channels, *labels]."""

    name: str
    batch: int
    channels: int
    cells: tuple[int, int]
    labels: tuple[int, int]
    dtype: str = "float32"

    def __str__(self) -> str:
        dtype = self.dtype.replace("float", "fp").replace("bfp", "bf")
        sizes = f"{self.batch}x{self.channels}x{self.cells[0]}x{self.cells[1]}-{self.labels[0]}x{self.labels[1]}"
        return f"{self.name}-{sizes}-{dtype}"

    @property
    def pixels(self) -> int:
        return self.batch * self.labels[0] * self.labels[1]


# semantic refinement between two stages, and up to a quarter of the picture
REFINED_CPU = (
    Upsampling("stage", 1, 256, (32, 64), (64, 128)), Upsampling("decoder", 1, 128, (64, 128), (256, 512)),
)  # fmt: skip
REFINED_GPU = (
    Upsampling("stage", 8, 256, (64, 128), (128, 256), "bfloat16"), Upsampling("stage", 8, 256, (64, 128), (128, 256)),
)  # fmt: skip
