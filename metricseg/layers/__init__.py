"""Layers for networks of any code base, over `metricseg_kernels`. Needs torch and numpy alone."""

from metricseg.layers.ccs import CCSLayer
from metricseg.layers.context import ContextualRefinement
from metricseg.layers.refinement import FlowAlign, SemanticRefinement

__all__ = ["CCSLayer", "ContextualRefinement", "FlowAlign", "SemanticRefinement"]
