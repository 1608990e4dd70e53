"""Names that a build may replace (hub/lay_out.py does): several builds then load in one process.

The C++ kernels register under the same name, METRICSEG_NAMESPACE in csrc/common/host/library.h.
"""

NAMESPACE = "metricseg"  # of the op library, torch.ops.metricseg
EXTENSION = "_C"  # the file of the extension, before its suffixes
