"""Views of a tensor that hold its values in another place or order."""

from __future__ import annotations

from torch import Tensor


def stepped(t: Tensor) -> Tensor:
    """Every second element of the last dimension."""
    wide = t.new_zeros((*t.shape[:-1], 2 * t.shape[-1])) if t.ndim else t.new_zeros(2)
    view = wide[..., 1::2] if t.ndim else wide[1]
    return view.copy_(t)


def column(t: Tensor) -> Tensor:
    """One of three columns, so that no stride is 1."""
    return t.new_zeros((*t.shape, 3))[..., 1].copy_(t)


def turned(t: Tensor) -> Tensor:
    """Dimensions in memory in reverse order."""
    order = tuple(reversed(range(t.ndim)))
    return t.permute(order).contiguous().permute(order)


def expanded(t: Tensor) -> Tensor:
    """The first of the leading dimension for all."""
    return t[:1].expand(t.shape) if t.ndim else t


VIEWS = {f.__name__: f for f in (stepped, column, turned, expanded)}
