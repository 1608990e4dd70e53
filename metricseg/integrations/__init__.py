"""Adapters that put metricseg's losses into the training code of other libraries, one module for each.

`smp` (segmentation_models_pytorch), `torchvision`, `transformers`, `mmseg` (mmsegmentation) and `pml`
(pytorch-metric-learning) import their host; this file imports none.
`low_resolution.py` is what they share: a model's final upsampling, left out in training. docs/hosts.md shows each.
"""
