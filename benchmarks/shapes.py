"""The shapes that users train with: a set that two CPU cores finish in minutes, and a set worth a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """Logits [batch, classes, *cells] against labels [batch, *labels]."""

    name: str
    batch: int
    classes: int
    cells: tuple[int, int]
    labels: tuple[int, int]
    dtype: str = "float32"

    def __str__(self) -> str:
        sizes = f"{self.batch}x{self.classes}x{self.cells[0]}x{self.cells[1]}"
        target = "" if self.cells == self.labels else f"-{self.labels[0]}x{self.labels[1]}"
        return f"{self.name}-{sizes}{target}-{self.dtype.replace('float', 'fp').replace('bfp', 'bf')}"

    @property
    def interpolates(self) -> bool:
        return self.cells != self.labels

    @property
    def pixels(self) -> int:
        return self.batch * self.labels[0] * self.labels[1]

    def smaller(self, factor: float) -> Shape:
        """The same at `factor` times the side length."""
        return replace(self, cells=_scaled(self.cells, factor), labels=_scaled(self.labels, factor))


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return round(size[0] * factor), round(size[1] * factor)


def _both(shape: Shape) -> tuple[Shape, Shape]:
    return shape, replace(shape, dtype="bfloat16")


CITYSCAPES = Shape("cityscapes", 1, 19, (128, 256), (512, 1024))
ADE20K = Shape("ade20k", 1, 150, (128, 128), (512, 512))


@dataclass(frozen=True)
class Set:
    """`main`: for the losses that most people train with; `side`: for the others; `sweep`: one of `main` over size."""

    main: tuple[Shape, ...]
    side: tuple[Shape, ...]
    sweep: tuple[Shape, ...]


CPU = Set(
    main=(
        CITYSCAPES,
        ADE20K,
        Shape("cityscapes", 1, 19, (512, 512), (512, 512)),
        Shape("ade20k", 1, 150, (256, 256), (256, 256)),
    ),
    side=(CITYSCAPES.smaller(0.5),),
    sweep=tuple(CITYSCAPES.smaller(factor) for factor in (0.25, 0.5, 2.0)),
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
