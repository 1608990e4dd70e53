"""Device code of the focal family: formulas, tiles, the walk over cells and labels, reductions."""
