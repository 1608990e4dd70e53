"""`python -m cuda_budgets [FAMILY ...]`: write what each CUDA kernel needs, and is bound by, to docs/kernels/budgets.md.

Reads the extension of this checkout, by the cuobjdump of a toolkit or of Triton; takes minutes. Launches are those of
the benchmarks' shapes for a GPU, as the host shim records them, without running a kernel.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from cuda_binary import FAMILIES, Usage, dump, nvcc_version, usages, why_not
from places import ROOT

PAGE = ROOT / "docs" / "kernels" / "budgets.md"
HEAD = ("kernel", "sm", "registers", "static", "threads", "blocks", "dynamic", "warps", "FMA", "tensor", "MUFU",
        "shared", "global", "flop/byte", "bound")  # fmt: skip


class Device(NamedTuple):
    """A multiprocessor: lanes of each pipe in a cycle, products of bf16 of its tensor cores, and what blocks share."""

    name: str
    multiprocessors: int
    fp32: int
    fp64: int
    tensor: int
    smem: int  # bytes of a multiprocessor; a block may have 1 KiB less, and takes 1 KiB more than it asks for


DEVICES = {
    "sm_80": Device("A100", 108, 64, 32, 1024, 164 << 10),
    "sm_90": Device("H100", 132, 128, 64, 2048, 228 << 10),
}
SPECIAL = 16  # lanes of exponentials and the like, of either


class Launch(NamedTuple):
    blocks: int
    threads: int
    smem: int


def shorten(kernel: str) -> str:
    """A kernel as the compiler prints it, without parameters and namespaces."""
    depth = 0
    for i, character in enumerate(kernel):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            kernel = kernel[:i]
            break
    return re.sub(r"\b\w+::|^void ", "", kernel).replace(" >", ">")


def readable(names: list[str]) -> list[str]:
    result = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [shorten(line) for line in result.stdout.splitlines()]


def by_kernel(usages: list[Usage]) -> dict[tuple[str, str], Usage]:
    """The same by readable name and architecture."""
    names = readable([u.kernel for u in usages])
    return {(name, u.architecture): u for name, u in zip(names, usages, strict=True)}


def recorded(family: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Registers and bytes of static shared memory of the page, by kernel and architecture."""
    section = re.search(rf"^## {family}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| `(.+?)` \| (\d+) \| (\d+) \| (\d+) ", section[1] if section else "", re.MULTILINE)
    return {(name, f"sm_{sm}"): (int(registers), int(static)) for name, sm, registers, static in rows}


def recorded_version() -> str:
    found = re.search(r"by nvcc (\S+)\.\n", PAGE.read_text())
    return found[1] if found else ""


def resident_warps(device: Device, registers: int, threads: int, smem: int) -> int:
    """Warps of a multiprocessor at a time: of 64, of 65,536 registers, of its shared memory, of 32 blocks."""
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    blocks = min(64 // warps, 65536 // of_warp // warps, device.smem // (smem + 1024), 32)
    return blocks * warps


# --- instructions ---


class Loop(NamedTuple):
    """Cost of an iteration of a loop for a warp, without inner loops; or of a kernel without a loop."""

    counts: Counter[str]  # by pipe
    smem_bytes: int
    global_bytes: int
    flops: int


WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def width(parts: list[str]) -> int:
    return next((WIDTHS[p] for p in parts if p in WIDTHS), 4)


def weigh(instructions: list[str]) -> Loop:
    counts: Counter[str] = Counter(issue=len(instructions))
    smem = loaded = flops = 0
    for opcode in instructions:
        name, *parts = opcode.split(".")
        if name in ("FFMA", "FADD", "FMUL", "DFMA", "DADD", "DMUL"):
            counts["fp64" if name[0] == "D" else "fp32"] += 1
            flops += 64 if name[1:] == "FMA" else 32
        elif name == "HMMA":  # 16 x 8 x 16 or x 8; products of tf32 take twice the time
            products = 16 * 8 * (16 if "16816" in parts else 8)
            counts["tensor"] += products * (2 if "TF32" in parts else 1)
            counts["HMMA"] += 1
            flops += 2 * products
        elif name == "MUFU":
            counts["special"] += 1
        elif name in ("LDS", "LDSM", "STS", "ATOMS"):
            size = 128 * int(parts[-1]) if name == "LDSM" and parts[-1] in "124" else 32 * width(parts)
            counts["smem"] += max(1, size // 128)  # 128 bytes a cycle
            smem += size if name in ("LDS", "LDSM") else 0
        elif name in ("LDG", "LDGSTS", "LD"):
            loaded += 32 * width(parts)
    return Loop(counts, smem, loaded, flops)


def hottest(lines: list[tuple[int, str, int | None]]) -> Loop:
    """The loop with most arithmetic, from (address, opcode, target of a branch) of a kernel."""
    branches = [(target, at) for at, opcode, target in lines if opcode.startswith("BRA") and target is not None]
    loops = {(first, last) for first, last in branches if first < last}
    found = []
    for first, last in loops or {(0, lines[-1][0])}:
        within = [(a, b) for a, b in loops if first <= a and b <= last and (a, b) != (first, last)]
        own = [opcode for at, opcode, _ in lines if first <= at <= last and not any(a <= at <= b for a, b in within)]
        found.append(weigh(own))
    return max(found, key=lambda loop: (loop.flops, loop.counts["issue"]))


@functools.cache
def disassemble() -> tuple[dict[tuple[str, str], Loop], dict[tuple[str, str], int]]:
    """The hottest loop of each kernel, and the threads that its launch bounds allow, by mangled name and architecture."""
    loops, threads = {}, {}
    for architecture, text in re.findall(r"code for (sm_\d+)(.*?)(?=code for sm_|\Z)", dump("-sass"), re.DOTALL):
        for name, body in re.findall(r"Function : (\w+)(.*?)(?=Function : |\Z)", text, re.DOTALL):
            body = re.sub(r"@!PT \w+", "NOP", body)  # never done
            found = re.findall(r"/\*([0-9a-f]{4,})\*/ +(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);", body)
            targets = [re.search(r"0x([0-9a-f]+)\s*$", rest) for _, _, rest in found]
            loops[name, architecture] = hottest([
                (int(at, 16), opcode, int(target[1], 16) if target else None)
                for (at, opcode, _), target in zip(found, targets, strict=True)
            ])  # fmt: skip
    for text in re.split(r"^arch = ", dump("-elf"), flags=re.MULTILINE)[1:]:
        architecture = text.split("\n", 1)[0].strip()
        for name, body in re.findall(r"^\.nv\.info\.(\w+)$(.*?)(?=^\.\w|\Z)", text, re.DOTALL | re.MULTILINE):
            if most := re.search(r"EIATTR_MAX_THREADS\s+Format:\s*\w+\s+Value:\s*0x(\w+)", body):
                threads[name, architecture] = int(most[1], 16)
    return loops, threads


# --- launches ---


def zeroed(allocate: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **options: allocate(*arguments, **options).zero_()


def launches(family: str, device: Device) -> dict[str, Launch]:
    """The launch of each kernel with the most shared memory, over the calls of a family."""
    import cuda_calls
    import cuda_host
    import pytest
    import torch

    if (why := cuda_host.why_not()) is not None:
        raise RuntimeError(why)
    module = cuda_host.load(family)
    with pytest.MonkeyPatch.context() as patch:
        op = importlib.import_module(f"metricseg_kernels.{family}.op")
        through = (
            importlib.import_module(f"metricseg_kernels.{family}.cuda") if family in ("contrast", "centers") else None
        )
        cuda_host.stand_in(patch, op, module, through)
        module.configure(device.multiprocessors, device.smem - 1024 - 4096, 0)
        module.record(True)
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            patch.setattr(owner, name, zeroed(getattr(owner, name)))  # no kernel fills them
        cuda_calls.CALLS[family]()
        found = module.recorded()
        module.record(False)
    most: dict[str, Launch] = {}
    for kernel, *launch in sorted(found, key=lambda launch: (launch[3], launch[1])):
        most[shorten(kernel)] = Launch(*launch)
    return most


# --- the page ---

INTRO = """\
# Budgets of the CUDA kernels

Written by `python -m cuda_budgets` from the extension and its disassembly, by nvcc {version}.
`tests/build/test_budgets.py` holds registers and static shared memory of that version against it. The rest is an estimate
of what binds a kernel, not a measurement.

- registers, static: registers of a thread, bytes of static shared memory of a block.
- threads, blocks, dynamic: the launch with most dynamic shared memory, in bytes, at the benchmarks' shapes for a GPU.
  Without such a launch, threads are the most that the kernel allows.
- warps: resident on a multiprocessor at a time, of 64.
- FMA, tensor, MUFU: instructions of fp32 and fp64 arithmetic, of tensor cores, and of exponentials, roots and
  reciprocals. They are counted in one turn of the loop with most arithmetic, without the loops inside it, or in a
  kernel without a loop.
- shared, global: bytes that a warp loads there. flop/byte: arithmetic for each of them.
- bound: what takes most cycles of a multiprocessor there, and the share of them in which its busiest arithmetic unit
  works. Rates of a cycle: 4 instructions; 64 (sm_80) or 128 (sm_90) lanes of fp32; 32 or 64 of fp64; 1,024 or 2,048
  products of bf16, half as many of tf32; 16 lanes of MUFU; 128 bytes of shared memory. Latency, bank conflicts and
  device memory are left out. Lanes that load the same address count each, so "shared" is an upper bound.
"""


def bound(device: Device, loop: Loop) -> str:
    c = loop.counts
    arithmetic = {
        "fp32": c["fp32"] * 32 / device.fp32,
        "fp64": c["fp64"] * 32 / device.fp64,
        "tensor": c["tensor"] / device.tensor,
        "MUFU": c["special"] * 32 / SPECIAL,
    }
    cycles = {**arithmetic, "issue": c["issue"] / 4, "shared": float(c["smem"])}
    name = max(cycles, key=lambda n: cycles[n])
    busy = max(arithmetic.values()) / cycles[name]
    return f"{name}, {busy:.0%}"


def rows(family: str) -> list[list[str]]:
    loops, most_threads = disassemble()
    launched = {architecture: launches(family, device) for architecture, device in DEVICES.items()}
    table = []
    for (kernel, architecture), u in sorted(by_kernel(usages()[family]).items()):
        device, loop = DEVICES[architecture], loops[u.kernel, architecture]
        launch = launched[architecture].get(kernel)
        threads = launch.threads if launch else most_threads.get((u.kernel, architecture), 1024)
        warps = resident_warps(device, u.registers, threads, u.shared + (launch.smem if launch else 0))
        loaded = loop.smem_bytes + loop.global_bytes
        table.append([
            f"`{kernel}`", architecture[3:], *map(str, (u.registers, u.shared, threads)),
            *(map(str, (launch.blocks, launch.smem)) if launch else ("", "")), str(warps),
            *map(str, (loop.counts["fp32"] + loop.counts["fp64"], loop.counts["HMMA"], loop.counts["special"])),
            *map(str, (loop.smem_bytes, loop.global_bytes)), f"{loop.flops / loaded:.1f}" if loaded else "",
            bound(device, loop),
        ])  # fmt: skip
    return table


def main() -> int:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*", choices=[*FAMILIES, []], help="those to write anew, else all")
    families = parser.parse_args().family or FAMILIES
    if (reason := why_not()) is not None:
        print(reason, file=sys.stderr)
        return 1
    old = PAGE.read_text() if PAGE.exists() else ""
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", old, re.DOTALL | re.MULTILINE))
    for family in tqdm(families, unit="family"):
        table = [list(HEAD), ["---"] * len(HEAD), *rows(family)]
        sections[family] = "\n" + "".join(f"| {' | '.join(row)} |\n" for row in table) + "\n"
    tables = "".join(f"## {family}\n{sections[family]}" for family in sorted(sections))
    PAGE.write_text(f"{INTRO.format(version=nvcc_version())}\n{tables.rstrip()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
