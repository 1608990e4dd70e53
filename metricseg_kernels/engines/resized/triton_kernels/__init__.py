"""Device code of the engine: coordinates of an axis, tiles, the walk over cells and labels, the softmax of a pixel."""
