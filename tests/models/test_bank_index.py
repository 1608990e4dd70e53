"""SegSort with an index of FAISS in the place of the prototypes of a bank."""

import sys

import pytest

pytest.importorskip("timm")
pytest.importorskip("faiss")
import faiss
import torch
import torch.nn.functional as F

from metricseg.models import PrototypeBank, build_model, read_bank, write_bank
from metricseg.models.bank import BankRows

D, K, R = 8, 4, 60
SMALL = {
    "name": "segsort", "backbone": "mobilenetv3_small_050", "channels": 16, "decoder_channels": 16,
    "embedding_channels": D, "num_classes": K,
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """A bank, and an exact index of it."""
    generator = torch.Generator().manual_seed(0)
    prototypes = F.normalize(torch.randn(R, D, generator=generator), dim=1)
    rows = BankRows(prototypes, torch.randint(K, (R,), generator=generator), torch.arange(R) // 5)
    write_bank(tmp_path / "bank.safetensors", rows, [f"{k}.png" for k in range(12)], "abcd", {"weights": "1"})
    return tmp_path / "bank.safetensors", write_index(tmp_path / "bank.faiss", prototypes)


def write_index(path, prototypes, metric=faiss.METRIC_INNER_PRODUCT):
    index = faiss.index_factory(prototypes.shape[1], "Flat", metric)
    index.add(prototypes.numpy())
    faiss.write_index(index, str(path))
    return path


def test_prediction_is_that_of_the_prototypes(files):
    bank, index = files
    torch.manual_seed(0)
    model = build_model({**SMALL, "bank": str(bank)}).eval()
    other = build_model({**SMALL, "bank": str(bank), "index": str(index)}).eval()
    other.load_state_dict(model.state_dict())
    assert other.bank.prototypes.shape == (0, D) and len(other.bank) == R
    assert other.bank.names == model.bank.names and other.bank.weights == "1"
    with torch.no_grad():
        embedding = model.outputs(torch.randn(2, 3, 64, 96), ("embedding",))["embedding"]
    embedding[0, :, :8] = torch.nan
    found, expected = other.retrieve(embedding), model.retrieve(embedding)
    assert (expected.neighbors == -1).any() and (expected.neighbors >= 0).any()
    for name in ("ids", "labels", "neighbors", "votes"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.similarities, expected.similarities)
    other.bank.fill(read_bank(bank).rows)  # as `fit` does
    assert torch.equal(other.retrieve(embedding).similarities, expected.similarities)


def test_prototypes_are_not_read(files, tmp_path):
    """If there are fewer than labels, the file is refused all the same."""
    rows, found = read_bank(files[0]).rows, read_bank(files[0], prototypes=False)
    assert found.rows.prototypes.shape == (0, D) and torch.equal(found.rows.labels, rows.labels)
    assert found.names == tuple(f"{k}.png" for k in range(12))
    write_bank(tmp_path / "none", BankRows(*(value[:0] for value in rows)))
    assert read_bank(tmp_path / "none", prototypes=False).rows.prototypes.shape == (0, D)
    write_bank(tmp_path / "fewer", rows._replace(prototypes=rows.prototypes[1:]))
    with pytest.raises(ValueError, match=rf"prototypes torch.float32 \[{R - 1}, {D}\]"):
        read_bank(tmp_path / "fewer", prototypes=False)


def test_indexes_that_are_refused(files, tmp_path, monkeypatch):
    bank, index = files
    prototypes = read_bank(bank).rows.prototypes
    (tmp_path / "cut").write_bytes(index.read_bytes()[:100])
    cases = [
        (tmp_path / "none", FileNotFoundError, r"the index .*none is missing"),
        (tmp_path / "cut", ValueError, r"the index .*cut can't be read: "),
        (bank, ValueError, r"the index .*bank\.safetensors can't be read: "),
        (write_index(tmp_path / "dim", prototypes[:, :5].contiguous()), ValueError, r"dim has D 5; the .*tensors has 8"),
        (write_index(tmp_path / "rows", prototypes[:7]), ValueError, r"rows has number of rows 7; the .*tensors has 60"),
        (write_index(tmp_path / "l2", prototypes, faiss.METRIC_L2), ValueError, "l2 has metric_type 1; it takes faiss.METRIC_INNER"),
    ]  # fmt: skip
    for path, error, words in cases:
        with pytest.raises(error, match=words):
            PrototypeBank(D, K, bank, path)
    with pytest.raises(ValueError, match=r"index is .*bank\.faiss; it takes the file of its prototypes too, as bank"):
        build_model({**SMALL, "index": str(index)})
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"bank\.faiss needs FAISS 1\.11 or later: pip install faiss-cpu"):
        PrototypeBank(D, K, bank, index)
