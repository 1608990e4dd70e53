"""Device code of the focal family: formulas, epilogues of the walk over cells and labels, reductions."""
