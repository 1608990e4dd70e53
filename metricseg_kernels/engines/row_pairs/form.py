"""Forms of a loss over pairs of rows: statistics and coefficients of a row, and losses and gradients from them."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Form:
    """Constants of a loss over pairs of rows."""

    name: ClassVar[str]
    Stats: ClassVar[type[Any]]  # a NamedTuple of row statistics [R]
    Coefs: ClassVar[type[Any]]  # a NamedTuple of row coefficients [R]
    absent: ClassVar[tuple[float, ...]]  # the statistics of a row that takes no part
    sums: ClassVar[int] = 1  # terms of a row, each a sum with a count of its own
    gradient_in_forward: ClassVar[bool] = True  # whether the stats of a row are complete before those of all rows are

    def terms(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        """Return ([R, sums] terms, [R, sums] counts) of row statistics [R, len(Stats)]."""
        raise NotImplementedError

    def coefs(self, stats: Tensor, grad_terms: Tensor) -> Tensor:
        """Return coefficients [R, len(Coefs)] of backward; grad_terms [R, sums], or [sums] for all rows."""
        raise NotImplementedError

    def pack(self) -> tuple[str, list[float]]:
        """Return the name and the constants."""
        return self.name, [float(v) for v in astuple(self)]
