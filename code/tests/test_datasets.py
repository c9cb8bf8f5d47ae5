"""Splits, batches, shifts and binary draws: what training sees of the images."""

import math
import urllib.error

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
from a3.fetch import DataError, Source
from datasets import RandomShift, Split, bernoulli, binarize, bmnist, labelled, mnist, shift_table

SOURCE = Source("mnist", "", "")
DISTINCT = torch.arange(784)  # an image of which no two pixels are equal


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Sources -----------------------------------------------------------------------------------------

@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in a test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.usefixtures("_no_network")
def test_without_files_and_network_the_sample_is_announced(tmp_path, capsys):
    train, val, test = bmnist(tmp_path / "absent")
    told = capsys.readouterr().out
    assert "bmnist is unavailable" in told and "mnist is unavailable" in told
    assert "data: sample" in told and train.source.name == "sample"
    assert [len(split.images) for split in (train, val, test)] == [4000, 500, 500]


@pytest.mark.usefixtures("_no_network")
def test_naming_a_source_never_gives_another(tmp_path):
    for load, name in ((bmnist, "bmnist"), (bmnist, "mnist"), (mnist, "mnist")):
        with pytest.raises(DataError, match=f"'--dataset {name}' is unavailable"):
            load(tmp_path, dataset=name)
    with pytest.raises(DataError, match="expected auto or one of mnist, sample"):
        mnist(tmp_path, dataset="bmnist")


def test_binary_splits_are_drawn_each_by_its_own_seed():
    grey, drawn = mnist(dataset="sample"), bmnist(dataset="sample")
    for i, (one, other) in enumerate(zip(grey, drawn, strict=True)):
        assert torch.equal(other.images, binarize(one.images, datasets.BINARIZATION_SEED + i))
        assert torch.equal(other.labels, one.labels)
    assert drawn[0].source.sha256 != grey[0].source.sha256


def test_labelled_images_are_test_itself_or_mnists_own_binarized(monkeypatch, capsys):
    test = mnist(dataset="sample")[2]
    assert labelled(test) is test
    bare = Split(binarize(test.images), SOURCE, batch_size=7)
    monkeypatch.setattr(datasets, "mnist", lambda root, dataset, device: (None, None, test))
    digits = labelled(bare)
    assert torch.equal(digits.images, binarize(test.images)) and digits.batch_size == 7
    assert torch.equal(digits.labels, test.labels) and digits.source == test.source

    def absent(root, dataset, device):
        raise DataError(f"no {dataset}")

    monkeypatch.setattr(datasets, "mnist", absent)
    capsys.readouterr()
    assert labelled(bare) is None
    assert capsys.readouterr().out == "figures that need labels are left out: no mnist\n"


def test_limit_cuts_the_training_images_only():
    parts = mnist(dataset="sample", limit=7)
    assert [len(split.images) for split in parts] == [7, 500, 500]
    assert [len(split.labels) for split in parts] == [7, 500, 500]


# Batches -----------------------------------------------------------------------------------------

@settings(max_examples=25)
@given(n=st.integers(1, 40), batch=st.integers(1, 50))
def test_every_image_once_and_the_short_last_batch_too(n, batch):
    images = torch.arange(n, dtype=torch.uint8)[:, None].repeat(1, 784)
    split = Split(images, SOURCE, batch_size=batch, generator=seeded())
    batches = list(split)
    assert len(batches) == len(split)
    assert sorted(torch.cat(batches)[:, 0].tolist()) == list(range(n))
    assert all(len(one) == batch for one in batches[:-1])


def test_val_and_test_keep_their_order_and_train_has_one_of_its_seed():
    def order(seed):
        train, *held_out = mnist(dataset="sample", seed=seed, limit=500)
        for split in held_out:
            assert torch.equal(torch.cat(list(split)), split.images.float())
        passes = [torch.cat(list(train)) for _ in range(2)]
        assert not torch.equal(passes[0], train.images.float())
        assert not torch.equal(*passes), "each pass has an order of its own"
        return passes[0]

    assert torch.equal(order(1), order(1)) and not torch.equal(order(1), order(2))


def test_batches_are_transformed_like_the_pixels_of_a_split():
    *_, test = mnist(dataset="sample", transform=lambda x: x / 255)
    batch = next(iter(test))
    assert batch.dtype == torch.float32 and batch.max() == 1
    assert torch.equal(batch, test.pixels(test.images[:128]))
    assert torch.equal((255 * batch).round(), test.images[:128].float())


# Shifts ------------------------------------------------------------------------------------------

def test_shift_moves_by_one_pixel_and_repeats_the_edge():
    image = torch.rand(28, 28, generator=seeded())
    table = shift_table(1)
    assert table.shape == (9, 784)
    padded = torch.nn.functional.pad(image[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    for i, index in enumerate(table):
        down, right = divmod(i, 3)
        expected = padded[down : down + 28, right : right + 28]
        assert torch.equal(image.flatten()[index].reshape(28, 28), expected)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_share_of_the_images_is_shifted_to_each_place_alike(share):
    """An image of distinct pixels is the row of the table by which it was moved."""
    out = RandomShift(1, share)(DISTINCT.repeat(4000, 1), seeded())
    moved_by = (out[:, None] == shift_table(1)).all(dim=2).double()
    assert (moved_by.sum(dim=1) == 1).all(), "each image is moved by one of the nine"
    shares, expected = moved_by.mean(dim=0), torch.full((9,), share / 9).double()
    expected[4] += 1 - share  # unmoved
    assert (shares - expected).abs().max() < 0.03, (shares, expected)
    assert share or shares[4] == 1, shares


def test_in_eval_mode_and_by_no_pixel_nothing_is_shifted():
    images = DISTINCT.repeat(20, 1)
    shift = RandomShift(2)
    assert not torch.equal(shift(images, seeded()), images)
    assert torch.equal(shift.eval()(images, seeded()), images)
    assert torch.equal(RandomShift(0)(images, seeded()), images)


def test_the_gradient_passes_through_a_shift_as_through_any_linear_map():
    """For a linear map S and any v: <gradient of <w, S x>, v> = <w, S v>."""
    x, v, w = torch.randn(3, 10, 784, generator=seeded(), dtype=torch.float64)
    x.requires_grad_()
    shift = RandomShift(1)
    (w * shift(x, seeded(1))).sum().backward()
    through, expected = (x.grad * v).sum(), (w * shift(v, seeded(1))).sum()
    assert math.isclose(through, expected, rel_tol=1e-12), (through, expected)


def test_a_split_shifts_the_batches_of_its_passes_by_its_own_generator():
    images = torch.randint(0, 256, (60, 784), generator=seeded(), dtype=torch.uint8)

    def passed(augment=None, global_seed=0):
        torch.manual_seed(global_seed)
        batches = Split(images, SOURCE, generator=seeded(), augment=augment, batch_size=60)
        return next(iter(batches))  # (60, 784)

    plain, shift = passed(), RandomShift(1)
    shifted = passed(shift)
    assert shifted.dtype == torch.float32
    rows = plain[:, shift_table(1)]  # (60, 9, 784): each image, moved
    assert (shifted[:, None] == rows).all(dim=2).any(dim=1).all(), "the images of the pass, moved"
    assert not torch.equal(shifted, plain)
    assert torch.equal(shifted, passed(shift, global_seed=1)), "the generator alone decides"
    shift.share = 0.0
    assert torch.equal(passed(shift), plain)


def test_only_training_images_are_shifted():
    for load in (mnist, bmnist):
        plain, shifted = (load(dataset="sample", limit=500, augment=augment)
                          for augment in (None, RandomShift(1)))
        for one, other in zip(plain[1:], shifted[1:], strict=True):
            assert torch.equal(torch.cat(list(one)), torch.cat(list(other)))
        assert not torch.equal(torch.cat(list(plain[0])), torch.cat(list(shifted[0])))


def test_the_first_images_come_in_order_and_unmoved():
    train = bmnist(dataset="sample", limit=20, batch_size=8, augment=lambda x, _: 1 - x)[0]
    first = train.first(11)
    assert [len(x) for x in first] == [8, 3]
    assert torch.equal(torch.cat(list(first)), train.images[:11].float())


def test_an_augmentation_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="augment needs a generator"):
        Split(torch.zeros(1, 784, dtype=torch.uint8), SOURCE, augment=RandomShift(1))


# Binary draws ------------------------------------------------------------------------------------

def test_a_bernoulli_draw_repeats_with_its_generator_and_keeps_the_shape():
    means = torch.rand(2, 3, 784, generator=seeded())
    draws = []
    for global_seed, seed in ((0, 1), (1, 1), (1, 2)):
        torch.manual_seed(global_seed)
        draws.append(bernoulli(means, seeded(seed)))
    assert draws[0].shape == means.shape and set(draws[0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])


def test_binarize_has_the_pixels_as_means_and_is_drawn_once():
    grey = torch.arange(0, 256, dtype=torch.uint8)[:, None].repeat(1, 784 * 10)
    drawn = binarize(grey)
    assert drawn.dtype == torch.uint8 and torch.equal(drawn, binarize(grey))
    assert torch.equal(drawn[0], torch.zeros_like(drawn[0]))
    assert torch.equal(drawn[255], torch.ones_like(drawn[255]))
    error = (drawn.float().mean(1) - grey[:, 0] / 255).abs().max()
    assert error < 4.5 * 0.5 / 7840**0.5, error
