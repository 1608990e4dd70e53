"""Device code of the lovasz family: epilogues of the walk over cells and labels, and errors in bins."""
