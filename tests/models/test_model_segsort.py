"""SegSort: retrieval against slow loops, the bank and its file."""

import json

import pytest

pytest.importorskip("timm")
import safetensors.torch
import torch
import torch.nn.functional as F

import metricseg_kernels as kernels
from metricseg.data import Scenes
from metricseg.models import PrototypeBank, build_model, read_bank, write_bank
from metricseg.models.bank import FORMAT, BankRows
from metricseg.models.segsort import vote
from metricseg.training.evaluation import IoU, predict_probabilities

D, K = 8, 4
SMALL = {
    "name": "segsort", "backbone": "mobilenetv3_small_050", "channels": 16, "decoder_channels": 16,
    "embedding_channels": D,
}  # fmt: skip


def rows(count=40, dim=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prototypes = F.normalize(torch.randn(count, dim, generator=generator), dim=1)
    return BankRows(prototypes, torch.randint(K, (count,), generator=generator), torch.arange(count) // 5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model({**SMALL, "num_classes": K}).eval()
    model.bank.fill(rows())
    return model


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(2, 3, 64, 96)


def test_prediction_is_the_vote_of_the_nearest_prototypes(model, images):
    with torch.no_grad():
        outputs = model.outputs(images, model.offers)
    assert {name: tuple(v.shape) for name, v in outputs.items()} == {
        "embedding": (2, D, 16, 24),
        "logits": (2, K, 16, 24),
    }
    found = model.retrieve(outputs["embedding"])
    clusters = kernels.spherical_kmeans(outputs["embedding"], backend="reference")
    v = F.normalize(outputs["embedding"], dim=1)
    for image in range(2):
        for cluster in clusters[image].unique().tolist():
            inside = clusters[image] == cluster
            prototype = F.normalize(v[image, :, inside].sum(1), dim=0)
            order = (model.bank.prototypes @ prototype).sort(descending=True, stable=True)
            segment = image * 25 + cluster
            assert (found.ids[image][inside] == segment).all()
            assert found.neighbors[segment].tolist() == order.indices[:15].tolist()
            torch.testing.assert_close(found.similarities[segment], order.values[:15])
            label = kernels.knn_vote(prototype[None], model.bank.prototypes, model.bank.labels, k=15)
            assert (outputs["logits"][image].argmax(0)[inside] == label).all() and found.labels[segment] == label
            votes = torch.bincount(model.bank.labels[order.indices[:15]], minlength=K)
            assert found.votes[segment].tolist() == votes.tolist()
    torch.testing.assert_close(model(images), outputs["logits"])
    assert predict_probabilities(model, images, (40, 60), (0.5, 1.0), flip=True).shape == (2, K, 40, 60)


def test_ties_go_to_the_nearest_neighbor():
    labels, votes = vote(torch.tensor([[0, 1, 2, 3], [1, 2, -1, -1], [-1, -1, -1, -1]]), torch.tensor([2, 1, 0, 1]), K)
    assert labels.tolist() == [1, 1, -1] and votes.tolist() == [[1, 2, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_pixels_that_are_not_finite_are_in_no_segment(model, images):
    with torch.no_grad():
        embedding = model.outputs(images, ("embedding",))["embedding"]
    embedding[0] = torch.nan
    found = model.retrieve(embedding)
    assert (found.ids[0] == -1).all() and (found.labels[:25] == -1).all() and (found.neighbors[:25] == -1).all()
    assert not model.logits(found)[0].any() and model.logits(found).isfinite().all()


def test_bank_smaller_than_the_number_of_neighbors(model, images):
    other = build_model({**SMALL, "num_classes": K}).eval()
    other.load_state_dict(model.state_dict())
    other.bank.fill(rows(3))
    found = other.retrieve(other.outputs(images, ("embedding",))["embedding"])
    assert found.neighbors.shape == (50, 3) and other(images).shape == (2, K, 16, 24)
    assert set(found.labels.tolist()) <= {-1, *other.bank.labels.tolist()}


def test_empty_bank_is_said(images):
    with pytest.raises(ValueError, match=r"the prototype bank is empty: .*`metricseg bank` builds one"):
        build_model({**SMALL, "num_classes": K}).eval()(images)


def test_rows_of_the_bank_are_means_of_the_majority(model, images):
    torch.manual_seed(2)
    labels = F.interpolate(torch.randint(K, (2, 1, 8, 12)).float(), (32, 48))[:, 0].to(torch.uint8)
    labels[:, :6] = 255
    with torch.no_grad():
        embedding = model.outputs(images, ("embedding",))["embedding"]
    found = model.bank_rows(images, labels, first=7)
    v, clusters, small = F.normalize(embedding, dim=1), kernels.spherical_kmeans(embedding), labels[:, ::2, ::2].long()
    expected = []
    for image in range(2):
        for cluster in range(25):
            inside = (clusters[image] == cluster) & (small[image] != 255)
            if inside.any():
                label = int(torch.bincount(small[image][inside], minlength=K).argmax())
                chosen = v[image][:, inside & (small[image] == label)]
                expected.append((F.normalize(chosen.sum(1), dim=0), label, 7 + image))
    assert found.labels.tolist() == [label for _, label, _ in expected]
    assert found.images.tolist() == [image for *_, image in expected]
    torch.testing.assert_close(found.prototypes, torch.stack([row for row, *_ in expected]))
    assert not len(model.bank_rows(images, torch.full_like(labels, 255)).labels)
    with pytest.raises(ValueError, match="for example 9"):
        model.bank_rows(images, torch.full_like(labels, 9))


def test_state_dict_holds_a_bank_of_any_size(model, images):
    other = build_model({**SMALL, "num_classes": K}).eval()
    for count in (7, 0, 40):
        model.bank.fill(rows(count))
        other.load_state_dict(model.state_dict())
        assert len(other.bank) == count and torch.equal(other.bank.images, model.bank.images)
    assert torch.equal(other(images), model(images))


def test_file_round_trip(tmp_path, images, model):
    path, names = tmp_path / "new/bank.safetensors", [f"{k}.png" for k in range(8)]
    write_bank(path, rows(), names, "abcd", {"note": "1"})
    found = read_bank(path)
    assert all(torch.equal(a, b) for a, b in zip(found.rows, rows(), strict=True))
    assert found.names == tuple(names) and found.classes == tuple("abcd") and found.more == {"note": "1"}
    assert [p.name for p in path.parent.iterdir()] == ["bank.safetensors"]
    loaded = build_model({**SMALL, "num_classes": K, "bank": str(path)}).eval()
    state = model.state_dict() | {f"bank.{name}": value for name, value in rows(3)._asdict().items()}
    loaded.load_state_dict(state)
    assert len(loaded.bank) == 40 and loaded.bank.names == tuple(names)  # the file's, not the checkpoint's
    assert "rows=40" in repr(loaded.bank)


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(FileNotFoundError, match=r"the prototype bank .*bank\.safetensors is missing"):
        read_bank(path)
    write_bank(path, rows())
    whole = path.read_bytes()
    for length in (0, 4, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"the prototype bank .*bank\.safetensors is damaged: "):
            read_bank(path)
    tensors = rows()._asdict()
    cases = [
        ({}, tensors, r"bank\.safetensors is no prototype bank"),
        ({"format": FORMAT, "version": "2"}, tensors, r"bank\.safetensors has version 2; this metricseg reads version"),
        ({"format": FORMAT, "version": "1"}, tensors, r"bank\.safetensors doesn't hold what it should: 'names'"),
        (None, {"labels": tensors["labels"]}, "doesn't hold what it should"),
        (None, tensors | {"labels": tensors["labels"][:3]}, r"doesn't hold what it should: .*labels torch.int64 \[3\]"),
        (None, tensors | {"labels": tensors["labels"].float()}, "labels torch.float32"),
    ]
    good = {"format": FORMAT, "version": "1", "names": json.dumps([]), "classes": json.dumps([])}
    for metadata, content, words in cases:
        path.write_bytes(
            safetensors.torch.save({k: v.clone() for k, v in content.items()}, good if metadata is None else metadata)
        )
        with pytest.raises(ValueError, match=words):
            read_bank(path)


def test_banks_of_other_networks_are_refused(tmp_path):
    path = tmp_path / "bank.safetensors"
    write_bank(path, rows(dim=5))
    with pytest.raises(ValueError, match=r"bank\.safetensors has prototypes of D = 5; the network has 8"):
        PrototypeBank(D, K, path)
    write_bank(path, rows())
    with pytest.raises(ValueError, match=r"bank\.safetensors has label 3; the network has 3 classes"):
        PrototypeBank(D, 3, path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"neighbors": 0}, "neighbors is 0; it takes an integer >= 1"),
        ({"neighbors": 1025}, "neighbors is 1025; it takes at most 1024"),
        ({"embedding_channels": 0}, "embedding_channels is 0"),
        ({"iterations": 1.5}, r"iterations is 1\.5"),
        ({"grid": 5}, r"grid is 5; it takes \(rows, columns\)"),
        ({"pictures": -1}, "pictures is -1; it takes an integer >= 0"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        build_model({**SMALL, "num_classes": K, **options})


def test_training_improves_retrieval_over_chance():
    """30 steps; a bank of 16 scenes labels 16 others better than shuffled labels do, and than before training."""
    from metricseg.losses import SegSortLoss

    torch.manual_seed(0)
    scenes = [Scenes("train", 32, 48)[k] for k in range(32)]
    images = torch.stack([image.as_subclass(torch.Tensor) for image, _ in scenes]).float() / 128 - 1
    labels = torch.stack([label.as_subclass(torch.Tensor) for _, label in scenes])
    model = build_model({**SMALL, "num_classes": 7})
    loss = SegSortLoss(D, capacity=1024)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)

    def miou(shuffled=False):
        model.eval()
        found = model.bank_rows(images[:16], labels[:16])
        order = torch.randperm(len(found.labels)) if shuffled else torch.arange(len(found.labels))
        model.bank.fill(found._replace(labels=found.labels[order]))
        iou = IoU(7)
        with torch.no_grad():
            iou.update(model.predict(images[16:], (48, 48)).argmax(1), labels[16:])
        model.train()
        return float(iou.compute().nanmean())

    before = miou()
    for step in range(30):
        chosen = torch.arange(step * 8, step * 8 + 8) % 32
        optimizer.zero_grad()
        loss(model.outputs(images[chosen], ("embedding",))["embedding"], labels[chosen]).backward()
        optimizer.step()
    after, chance = miou(), miou(shuffled=True)
    assert after > 1.3 * chance and after > 1.1 * before, (before, after, chance)
