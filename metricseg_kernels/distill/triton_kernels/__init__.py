"""Device code of the distill family: the other map at label pixels, formulas, epilogues of the walk, and the sums."""
