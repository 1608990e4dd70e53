"""`python -m metricseg.demo`: a small network trained twice on generated scenes, with pictures and times."""
