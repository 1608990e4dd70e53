"""Warnings about names that a later version removes; RELEASING.md has the policy."""

from __future__ import annotations

import warnings


def warn_deprecated(old: str, new: str, removal: str, stacklevel: int = 2) -> None:
    """Warn that `old` is removed in version `removal`, at the caller's place; a larger `stacklevel` is farther out."""
    text = f"{old} is deprecated and will be removed in metricseg {removal}; use {new}"
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel + 1)
