"""Device code of the contrast family: kernels, and the epilogues that hold the formulas."""
