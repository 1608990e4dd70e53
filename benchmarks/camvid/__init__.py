"""Training runs: comparisons on CamVid, and an epoch on generated scenes. Run: python -m benchmarks.camvid --help"""
