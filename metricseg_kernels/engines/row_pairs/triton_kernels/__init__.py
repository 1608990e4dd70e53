"""Device code of the engine for pairs of rows: tiles, and the kernels that pass them to the functions of a form."""
