"""The training task, evaluation, checkpoints, and Lightning's command line over them; needs the `train` extra."""

from metricseg.training.task import SegmentationTask

__all__ = ["SegmentationTask"]
