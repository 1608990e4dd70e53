"""What every op family leans on: the extension, the choice of a backend, the op library, argument checks."""
