"""The host shim of CUDA kernels: it finds planted faults and what a device refuses, and its products are right."""

from __future__ import annotations

import ctypes
import re

import cuda_host
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.slow

RACE = "race in shared memory: thread "
PENDING = r" of block 0 has on its way \(cp.async\)"
FAULTS = {
    "missing_barrier_wrong": f"{RACE}32 of block 0 writes what thread 31 of block 0 read, byte 128 of .*::values, at ",
    "write_after_read_wrong": rf"{RACE}32 of block 0 reads what thread 31 of block 0 wrote, element 31 \(4 bytes each\)"
    " of dynamic shared memory, at ",
    "write_after_two_warps_read_wrong": f"{RACE}37 of block 0 writes what thread 5 of block 0 read",
    "write_after_two_lanes_read_wrong": f"{RACE}0 of block 0 writes what thread 1 of block 0 read",
    "read_beside_atomics_wrong": f"{RACE}1 of block 0 writes what thread 0 of block 0 read, byte 0 of .*::count, at ",
    "divergent_barrier_wrong": r"thread 0 of block 0 is at __syncthreads of line \d+, which thread 48 .* has ended",
    "barrier_in_each_branch_wrong": r"is at __syncthreads of line \d+, which thread 32 .* it is at __syncthreads of",
    "two_blocks_write_wrong": "race in global memory: thread 0 of block 1 writes what thread 0 of block 0 wrote, "
    r"element 0 \(4 bytes each\) of out, at ",
    "two_blocks_read_and_write_wrong": "race in global memory: thread 0 of block 1 reads what thread 0 of block 0 wrote",
    "write_after_another_block_read_wrong": "race in global memory: thread 63 of block 1 writes what thread 32 of "
    r"block 0 read, element 0 \(4 bytes each\) of in, at ",
    "a_lane_leaves_wrong": "thread 0 of block 0 is in a shuffle with mask 0xffffffff, which thread 5 .* has ended",
    "a_lane_without_name_wrong": "a vote: its mask lacks the lane itself",
    "two_kinds_of_call_wrong": "is in a vote with mask 0xffffffff, which thread 1 .* is in a shuffle with mask",
    "shuffle_from_outside_wrong": "a shuffle reads lane 16, not in its mask",
    "missing_syncwarp_wrong": f"{RACE}0 of block 0 reads what thread 1 of block 0 wrote",
    "syncwarp_between_warps_wrong": f"{RACE}32 of block 0 writes what thread 0 of block 0 read",
    "syncwarp_of_halves_wrong": f"{RACE}0 of block 0 reads what thread 16 of block 0 wrote",
    "syncwarp_before_a_write_wrong": f"{RACE}1 of block 0 reads what thread 0 of block 0 wrote",
    "copies_no_wait": f"{RACE}0 of block 0 reads what thread 0{PENDING}",
    "copies_too_few": f"{RACE}0 of block 0 reads what thread 0{PENDING}",
    "copies_no_barrier": f"{RACE}32 of block 0 writes what thread 0 of block 0 read",
    "copies_other_thread": f"{RACE}32 of block 0 writes what thread 0 of block 0 read",
    "copies_overwritten": f"{RACE}0 of block 0 writes what thread 0{PENDING}",
    "copies_source": "cp.async: its source has changed",
    "misaligned_copy_wrong": "cp.async: an address is not 16-byte aligned",
    "misaligned_matrix_wrong": "ldmatrix: a row is not 16-byte aligned",
    "misaligned_vector_wrong": r"Vec.* is misaligned: address \d+ is no multiple of 16, at ",
    "misaligned_value_wrong": r"a value of 8 bytes is misaligned: address \d+ is no multiple of 8, at ",
    "misaligned_store_wrong": r"Vec.* is misaligned: address \d+ is no multiple of 16, at ",
}
LINES = {  # of the access that is reported
    "missing_barrier_wrong": "values[threadIdx.x] = in[threadIdx.x];",
    "write_after_read_wrong": "const float other = values[kThreads - 1 - threadIdx.x];",
    "read_beside_atomics_wrong": "atomicAdd(&count, 1);",
    "two_blocks_write_wrong": "out[at] = in[at];",
    "misaligned_vector_wrong": "const auto whole = *reinterpret_cast<const Vec<float>*>(in + (right ? 4 : 5) * threadIdx.x);",
    "misaligned_value_wrong": "out[threadIdx.x] = static_cast<float>(values[threadIdx.x]);",
    "misaligned_store_wrong": "*reinterpret_cast<Vec<float>*>(out + (right ? 4 : 5) * threadIdx.x) = whole;",
}


@pytest.fixture(scope="module")
def planted() -> ctypes.CDLL:
    if (reason := cuda_host.why_not()) is not None:
        pytest.skip(reason)
    library = ctypes.CDLL(str(cuda_host.build("planted", more="-fsanitize=alignment")))
    for name in ("run_planted", "launch_nothing", "run_product"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def run(planted: ctypes.CDLL, name: str, seed: int = 0) -> tuple[str, Tensor]:
    """The error, and the output of kernel `name` for the input 1, 2, ..."""
    x, out = torch.arange(320.0) + 1, torch.full((320,), torch.nan)
    error = planted.run_planted(name.encode(), seed, pointer(x), pointer(out), ctypes.c_int64(320))
    return error.decode(), out


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, planted: ctypes.CDLL) -> None:
    error, _ = run(planted, name)
    assert run(planted, name, seed=1)[0] != "", "in another order of blocks, warps and lanes"
    assert re.search(FAULTS[name], error), error
    assert re.search(rf", in kernel void .*{'copies' if name.startswith('copies') else name[:-6]}<", error), error
    if name in LINES:
        line = int(re.findall(r", at planted\.cpp:(\d+)", error)[0])
        source = (cuda_host.HERE / "planted.cpp").read_text().splitlines()
        assert source[line - 1].strip() == LINES[name]


ADDRESSES = """
import ctypes
planted, count = ctypes.CDLL({library!r}), ctypes.c_int64(320)
x, out = (ctypes.c_float * 320)(*range(320)), (ctypes.c_float * 320)()
for name in {names!r}:
    planted.run_planted(name.encode(), 1, x, out, count)
print("clean")
"""


@pytest.mark.parametrize("name", ["past_shared_memory", "past_an_array"])
def test_address_sanitizer_finds_planted_faults(name: str, planted: ctypes.CDLL) -> None:
    library = str(cuda_host.build("planted", sanitize=True))
    right, wrong = (name + "_right", "missing_barrier_right"), (name + "_wrong",)
    assert cuda_host.sanitized(ADDRESSES.format(library=library, names=right)).stdout == "clean\n"
    found = cuda_host.sanitized(ADDRESSES.format(library=library, names=right + wrong))
    assert found.returncode != 0 and found.stdout == ""
    assert re.search(rf"AddressSanitizer: \S+-buffer-overflow[^#]*#0 \S+ in {name}<false>", found.stderr), found.stderr


@pytest.mark.parametrize("seed", [0, 1])
def test_kernels_without_a_fault_pass(seed: int, planted: ctypes.CDLL) -> None:
    faultless = [name.replace("_wrong", "_right") for name in FAULTS if name.endswith("_wrong")]
    for name in faultless:
        error, out = run(planted, name, seed)
        assert error == "" and out[0].isfinite(), name
    assert run(planted, "missing_barrier_right", seed)[1][:64].tolist() == list(range(64, 0, -1))
    error, out = run(planted, "copies_right", seed)
    values = (torch.arange(256.0) + 1).view(64, 4)
    values[:, :2] *= 2  # a second copy has zeros in place of the others
    assert error == "" and torch.equal(out[:256], values.flatten())


def test_shuffles(planted: ctypes.CDLL) -> None:
    error, out = run(planted, "shuffles")
    assert error == ""
    up, down, ninth, across = out[:256].view(4, 2, 32) - torch.arange(64).view(2, 32) - 1  # the distance in lanes
    lanes = torch.arange(32).expand(2, 32)
    assert torch.equal(up, torch.where(lanes < 2, 0, -2))
    assert torch.equal(down, torch.where(lanes % 8 >= 6, 0, 2))
    assert torch.equal(ninth, 1 - lanes % 8)
    assert torch.equal(across, torch.where(lanes % 16 < 8, 0, (lanes ^ 9) - lanes))


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        ((2, 3, 2, 1024, 44 << 10, 0), ""),
        ((1, 1, 1, 32, 90 << 10, 90 << 10), ""),
        ((1, 1, 1, 1056, 0, 0), "threads: 1056, and a device takes at most 1024"),
        ((1, 1, 1, 48, 0, 0), "bad launch"),
        ((0, 1, 1, 32, 0, 0), "bad launch"),
        ((2**31, 1, 1, 32, 0, 0), "blocks along x: 2147483648, and a device takes at most 2147483647"),
        ((1, 65536, 1, 32, 0, 0), "blocks along y or z: 65536, and a device takes at most 65535"),
        ((1, 1, 65536, 32, 0, 0), "blocks along y or z: 65536, and a device takes at most 65535"),
        ((1, 1, 1, 32, 45 << 10, 0), "shared memory that were not asked for: 46080, and a device takes at most 45056"),
        ((1, 1, 1, 32, 91 << 10, 90 << 10), "shared memory that were not asked for: 93184, and a device takes at most"),
    ],
    ids=lambda x: None if isinstance(x, str) else "-".join(map(str, x)),
)
def test_what_a_device_refuses(launch: tuple[int, ...], words: str, planted: ctypes.CDLL) -> None:
    *geometry, smem, asked = launch
    error = planted.launch_nothing(*geometry, ctypes.c_int64(smem), ctypes.c_int64(asked)).decode()
    assert words in error and bool(words) == bool(error)


def product(planted: ctypes.CDLL, name: str, a: Tensor, b: Tensor) -> Tensor:
    c = torch.full((16, 16), torch.nan)
    assert planted.run_product(name.encode(), pointer(a), pointer(b), pointer(c)) == b""
    return c


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_products_of_16_bits(name: str, dtype: torch.dtype, planted: ctypes.CDLL) -> None:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    truth = (a.double() @ b.double()).float()
    assert torch.equal(product(planted, f"{name}_transposed", a, b), truth)
    assert torch.equal(product(planted, name, a, b.T.contiguous()), truth)


def test_products_of_tf32_ignore_13_bits(planted: ctypes.CDLL) -> None:
    a, b = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    cut = [(x.view(torch.int32) & ~0x1FFF).view(torch.float32).double() for x in (a, b)]
    got = product(planted, "tf32", a, b)
    assert torch.equal(got, (cut[0] @ cut[1].T).float()) and not torch.equal(got, (a.double() @ b.T.double()).float())
