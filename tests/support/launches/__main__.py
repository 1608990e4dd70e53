"""`python -m launches FAMILY CAPABILITY [-k TEXT] [--every N]`: a line per compiled kernel; status 1 if one does not fit.

FAMILY: one, or "all", or "recorded".
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family")
    parser.add_argument("capability", type=int)
    parser.add_argument("-k", default="", metavar="TEXT", help="only calls whose id contains it")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th call")
    parser.add_argument("-q", action="store_true", help="print only what spills or does not fit, and the count")
    arguments = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    import launches

    families = launches.FAMILIES if arguments.family == "all" else (arguments.family,)
    complaints = 0
    for family in families:
        table = "launches.recorded" if family == "recorded" else f"{family}_launches"
        calls = [c for c in importlib.import_module(table).calls() if arguments.k in c.id][:: arguments.every]
        start, count, failed = time.perf_counter(), 0, 0
        for call, kernels, error in launches.compile_calls(calls, arguments.capability):
            count += len(kernels)
            for kernel in kernels:
                complaint = kernel.complaint(call, arguments.capability)
                failed += complaint is not None
                if complaint or kernel.stack or not arguments.q:
                    print(f"{call.id:48} {kernel.name:14} {kernel.registers:4} registers {kernel.stack:4} stack "
                          f"{kernel.shared:7} shared {kernel.warps:2} warps {kernel.seconds:5.1f} s",
                          f"  <-- {complaint}" if complaint else "", flush=True)  # fmt: skip
            if error is not None:
                failed += 1
                print(f"{call.id:48} {error[-1500:]}", flush=True)
        print(f"{family} sm_{arguments.capability} triton {triton.__version__}: {len(calls)} calls, "
              f"{count} kernels, {failed} failed, {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        complaints += failed + (not count)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
