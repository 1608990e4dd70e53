"""The layout of Hugging Face's `kernels`, read and loaded by that library itself; noxfile.py's session `hub` has it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from places import ROOT

pytest.importorskip("kernels._rust")  # a folder of the tests has the package's name, too
import kernels

FOCAL = (torch.randn(1, 5, 4, 6), torch.randint(5, (1, 8, 12)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "hub")
    import lay_out

    return lay_out


def load(folder: Path) -> ModuleType:
    return kernels.get_local_kernel(folder, backend="cpu")


def test_kernel_builder_takes_the_project(hub: ModuleType, tmp_path: Path) -> None:
    """Its own parser, and every source by its name."""
    from kernels import _rust

    hub.sources(tmp_path)
    build = _rust.Build.open(tmp_path)
    assert len(build.general.backends) == 2
    text = (tmp_path / "build.toml").read_text()
    for path in (ROOT / "csrc").rglob("*.*"):
        assert f'"{path.relative_to(ROOT).as_posix()}"' in text, path
    assert "#define METRICSEG_NAMESPACE TORCH_EXTENSION_NAME\n" in (tmp_path / "csrc/common/host/library.h").read_text()


def test_no_file_imports_the_package_by_its_name(hub: ModuleType, tmp_path: Path) -> None:
    hub.sources(tmp_path)
    for path in (tmp_path / "torch-ext").rglob("*.py"):
        lines = [line.split() for line in path.read_text().splitlines()]
        assert not [line for line in lines if line[:1] in (["import"], ["from"]) and line[1].startswith("metricseg")], (
            path
        )


def test_two_versions_in_one_process(hub: ModuleType, tmp_path: Path) -> None:
    """Beside the installed package, each with the op library of its build."""
    import metricseg_kernels

    expected = metricseg_kernels.focal_loss(*FOCAL, backend="reference")
    for version in ("one", "two"):
        identity = f"_metricseg_kernels_cpu_{version}"
        hub.lay_out(tmp_path / version / "build" / "torch-cpu", identity)
        kernel = load(tmp_path / version)
        assert kernel is not metricseg_kernels and kernel.__name__ == identity
        assert torch.equal(kernel.focal_loss(*FOCAL, backend="reference"), expected)
        assert hasattr(getattr(torch.ops, identity), "focal_loss_fwd")


def test_the_digest_is_the_library_s(hub: ModuleType, tmp_path: Path) -> None:
    from kernels import _rust

    variant = hub.lay_out(tmp_path / "torch-cpu", "_metricseg_kernels_cpu_digest")
    found = _rust.Digest.hash_variant(_rust.DigestAlgorithm.SHA256, variant)
    assert _rust.Metadata.read_from_file(variant / "metadata.json").digest.files == found.files


def test_a_variant_with_cuda(hub: ModuleType, tmp_path: Path) -> None:
    """The library chooses it under a torch with this CUDA or a later minor version; its record names the devices."""
    from kernels import _rust, variants
    from packaging.version import Version

    package = tmp_path / "built"
    package.mkdir()
    (package / "_C.so").touch()
    (package / "_build.json").write_text('{"cuda_arch_list": "8.0;9.0+PTX"}')
    variant = hub.lay_out(tmp_path / hub.variant_name("cu130"), "_metricseg_kernels_cuda_x", package)
    parsed = variants.parse_variant(variant.name)
    assert parsed.framework.version == Version("2.10") and parsed.arch.backend.version == Version("13.0")
    metadata = _rust.Metadata.read_from_file(variant / "metadata.json")
    assert metadata.backend.archs == ["8.0", "9.0+PTX"]
    assert f"{metadata.id}.abi3.so" in metadata.digest.files


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_kernels_of_a_build(hub: ModuleType, tmp_path: Path) -> None:
    """Built under the name of the build: the same bits as this checkout's, forward and backward."""
    import metricseg_kernels

    variant = hub.built(tmp_path, "cpu")
    assert variant.name.startswith("torch-stable-abi210-cpu-")
    kernel = load(tmp_path)
    leaves = [FOCAL[0].clone().requires_grad_() for _ in range(2)]
    losses = [
        kernel.focal_loss(leaves[0], FOCAL[1], backend="cpu"),
        metricseg_kernels.focal_loss(leaves[1], FOCAL[1], backend="cpu"),
    ]
    torch.autograd.backward(losses)
    assert torch.equal(*losses) and torch.equal(leaves[0].grad, leaves[1].grad)
    embeddings, labels = torch.randn(300, 16), torch.randint(4, (300,))
    for package in (kernel, metricseg_kernels):
        assert package.pixel_contrast_loss(embeddings, labels, backend="cpu").isfinite()
    compiled = torch.compile(kernel.focal_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*FOCAL, backend="cpu"), losses[1])
