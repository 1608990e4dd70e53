"""Loops that several families share, without dependence on any of them.

`row_pairs`: all rows of one set against all rows of another, a stream of tiles X Y^T with an epilogue.
`pixel_rows`: all pixels of a feature map against a few rows, products straight from NCHW.
`resized`: low-resolution logits interpolated to label pixels.
"""
