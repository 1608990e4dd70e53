"""Where things lie. Imported, it makes the modules of every op family's tests importable by name."""

import sys
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parent.parent

for folder in sorted((SUPPORT.parent / "kernels").iterdir()):
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))
