"""Device code of the region family: epilogues of the walk over cells and labels, and sums in a fixed order."""
