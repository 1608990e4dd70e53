"""The model layer of `metricseg`: losses, networks, data and training for semantic segmentation.

`metricseg.losses` needs torch and numpy alone. `metricseg.data`, `metricseg.models`, `metricseg.training` and the
command line need the `train` extra: `pip install -e ".[train]"`. So this file imports none of them.
"""
