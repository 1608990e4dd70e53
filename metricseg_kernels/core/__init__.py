"""Base of every op family: the extension, the choice of a backend, the op library, argument checks."""
