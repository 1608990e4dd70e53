"""mmsegmentation as it can be had without a compiler: `mmcv._ext`, which PyPI's mmcv-lite lacks, is a stub.

mmseg imports the module with its decode heads. All else of mmseg, mmengine and mmcv is real. A call of an op of the
stub raises.
"""

import importlib.util
import sys
import types

import pytest


class Extension(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*arguments, **options):
            raise RuntimeError(f"mmcv._ext.{name} is a stub")

        return missing


def need_mmseg():
    """Skip, with the reason, if mmseg can't be imported."""
    for name in ("mmcv", "mmengine", "mmseg"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed", allow_module_level=True)
    reason = "mmseg can't be imported: a package that it needs is missing"
    pytest.importorskip("mmengine.optim", reason=reason)
    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = Extension("mmcv._ext")
    pytest.importorskip("mmseg.models", reason=reason)
