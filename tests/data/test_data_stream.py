"""The augmented stream is a pure function of (seed, epoch, index); the generated scenes of (seed, split, index)."""

from itertools import islice

import pytest

pytest.importorskip("torchvision")
import torch
from torch.utils.data import DataLoader

from metricseg.data import IGNORE, Augmented, EpochSampler, Scenes, train_transform
from metricseg.data.stream import ResumableLoader
from metricseg.data.transforms import RandomScale, eval_transform

DATA = Scenes(length=7, size=48)


def stream(seed=3):
    return Augmented(DATA, train_transform((40, 56), scale=(0.6, 1.6), jitter=0.3), seed)


def test_samples_do_not_depend_on_history():
    first, second = stream(), stream()
    for position in (20, 3, 15):
        torch.rand(position)
        for a, b in zip(first[position], second[position], strict=True):
            assert torch.equal(a, b)


def test_seed_epoch_and_index_each_change_the_sample():
    data = stream()
    images = [data[9][0], data[10][0], data[9 + 7][0], stream(4)[9][0]]
    assert all(not torch.equal(images[0], other) for other in images[1:])


def test_global_generator_is_left_alone():
    data = stream()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _ = data[2]
    assert torch.equal(torch.rand(3), expected)


def test_workers_give_the_same_batches():
    sampler = EpochSampler(7, seed=1)
    sampler.set_epoch(2)
    alone = list(DataLoader(stream(), 3, sampler=sampler))
    shared = list(DataLoader(stream(), 3, sampler=sampler, num_workers=1))
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_resumes_in_the_middle_of_an_epoch(workers):
    def loader():
        sampler = EpochSampler(7, seed=1)
        sampler.set_epoch(2)
        return ResumableLoader(stream(), 2, sampler=sampler, drop_last=True, num_workers=workers)

    whole = list(loader())
    for given in range(4):
        first, second = loader(), loader()
        before = list(islice(first, given))
        second.load_state_dict(first.state_dict())
        batches = before + list(second)
        assert len(second) == len(batches) == 3 and second.state_dict() == {"epoch": 2, "batches": 3}
        for (a, _), (b, _) in zip(whole, batches, strict=True):
            assert torch.equal(a, b)
        assert len(list(second)) == 3
    third = loader()
    third.load_state_dict({"epoch": 1, "batches": 2})  # the end of the epoch before
    assert len(list(third)) == 3


def test_sampler_visits_all_once_and_ranks_share_nothing():
    sampler = EpochSampler(11, seed=1)
    sampler.set_epoch(4)
    order = list(sampler)
    assert sorted(order) == list(range(44, 55)) and order != sorted(order)
    ranks = [EpochSampler(11, seed=1, rank=r, replicas=2) for r in range(2)]
    a, b = ([p % 11 for p in rank] for rank in ranks)
    assert len(a) == len(b) == 5 and not set(a) & set(b)


def test_crop_pads_with_mean_and_ignore():
    transform = train_transform((64, 64), scale=(0.5, 0.5), flip=0.0)
    image, labels = transform(*DATA[0])
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32
    assert labels.shape == (64, 64) and labels.dtype == torch.uint8
    assert int((labels != IGNORE).sum()) <= 24 * 24
    corner = image[:, labels == IGNORE][:, :1] if labels[0, 0] != IGNORE else image[:, :1, 0]
    assert float(corner.abs().max()) < 0.02


def test_scale_moves_picture_and_labels_together():
    image, labels = RandomScale((2.0, 2.0))(*DATA[0])
    assert image.shape[-2:] == labels.shape[-2:] == (96, 96)
    assert torch.equal(labels[::2, ::2].as_subclass(torch.Tensor), DATA[0][1].as_subclass(torch.Tensor))
    with pytest.raises(ValueError, match="smallest <= largest"):
        RandomScale((2.0, 1.0))


def test_evaluation_keeps_the_label_maps_size():
    image, labels = eval_transform(short_side=24)(*DATA[0])
    assert image.shape[-2:] == (24, 24) and labels.shape == (48, 48)


def test_scenes_are_a_function_of_seed_split_and_index():
    again = Scenes(length=7, size=48)
    assert all(torch.equal(a, b) for a, b in zip(DATA[5], again[5], strict=True))
    others = [DATA[4], Scenes("val", 7, 48)[5], Scenes(length=7, size=48, seed=1)[5]]
    assert all(not torch.equal(DATA[5][0], other[0]) for other in others)
    assert sum(1 for _ in DATA) == 7


def test_scenes_have_all_classes_and_ignored_pixels():
    seen = torch.cat([labels.flatten() for _, labels in Scenes(length=40, size=64)]).unique().tolist()
    assert seen == [*range(len(Scenes.classes)), IGNORE]


def test_scenes_are_not_told_apart_by_colour():
    """The mean colors of the classes differ less than colors do within a class."""
    pixels = [(image.flatten(1).T.float(), labels.flatten()) for image, labels in Scenes(length=60, size=64)]
    colors, labels = torch.cat([p[0] for p in pixels]), torch.cat([p[1] for p in pixels])
    groups = [colors[labels == k] for k in range(1, len(Scenes.classes))]
    between = torch.stack([g.mean(0) for g in groups]).std(0)
    within = torch.stack([g.std(0) for g in groups]).mean(0)
    assert bool((between < within / 3).all())


@pytest.mark.parametrize("options", [{"split": "test"}, {"size": 16}])
def test_scenes_check_their_arguments(options):
    with pytest.raises(ValueError):
        Scenes(**options)
