"""All rows of one set against all rows of another: a stream of tiles X Y^T, each with a small epilogue.

The matrix of all pairs never exists.
"""
