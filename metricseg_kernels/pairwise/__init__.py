"""The engine of every op that meets all rows of one set with all rows of another: a stream of tiles X Y^T, each with a
small epilogue. The matrix of all pairs never exists."""
