"""Explanations of SegSort's predictions: each segment of a picture with the training segments that voted for its label,
as pages for a browser and as pictures. `metricseg explain` writes them."""

from metricseg.visualization.explain.writer import explain

__all__ = ["explain"]
