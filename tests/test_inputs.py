"""Batches, the validation split and the treatments, against slow and obvious versions."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from gtdl_mlflow.worker import inputs
from gtdl_mlflow.worker.inputs import InputError, Treatment, batches, check, split
from gtdl_mlflow.worker.job import Order, Take, Training, Validation


def numbers(count: int, size: int, order: Order, steps: int, seed: int = 0, start: int = 0) -> list[list[int]]:
    """Which images the first batches hold; image i is the number i, and so is its label."""
    images, labels = np.arange(count, dtype=np.float32)[:, None], np.arange(count)
    taken = []
    for batch, marks in itertools.islice(batches(images, labels, size, order, seed, start), steps):
        assert (batch[:, 0] == marks).all()
        taken.append(marks.tolist())
    return taken


def test_sequential_batches_go_round_and_round() -> None:
    assert numbers(5, 2, Order.sequential, 6) == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1]]


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert numbers(3, 8, Order.sequential, 2) == [[0, 1, 2, 0, 1, 2, 0, 1], [2, 0, 1, 2, 0, 1, 2, 0]]


def test_sequential_batches_are_views() -> None:
    images = np.zeros((6, 1), np.float32)
    batch, _ = next(batches(images, np.arange(6), 3, Order.sequential, 0))
    assert np.shares_memory(batch, images)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 12, 30])
def test_every_epoch_shows_every_image_once(size: int) -> None:
    shown = list(itertools.chain(*numbers(12, size, Order.shuffled, 60 // size + 1)))
    epochs = [shown[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5  # another order each time


def test_a_shuffled_batch_goes_on_with_the_next_epoch() -> None:
    by_one = list(itertools.chain(*numbers(5, 1, Order.shuffled, 15, seed=4)))
    assert list(itertools.chain(*numbers(5, 3, Order.shuffled, 5, seed=4))) == by_one


def test_the_seed_decides_the_order() -> None:
    one = numbers(50, 10, Order.shuffled, 5, seed=1)
    assert numbers(50, 10, Order.shuffled, 5, seed=1) == one
    assert numbers(50, 10, Order.shuffled, 5, seed=2) != one
    assert numbers(50, 10, Order.sequential, 5, seed=1) == numbers(50, 10, Order.sequential, 5, seed=2)


def test_the_order_of_a_seed_never_changes() -> None:
    assert numbers(10, 10, Order.shuffled, 2, seed=1) == [
        [5, 6, 4, 9, 8, 3, 7, 0, 2, 1],
        [4, 7, 6, 8, 0, 1, 3, 5, 9, 2],
    ]


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("size", [3, 4, 17])
def test_starting_later_is_skipping(order: Order, size: int) -> None:
    whole = numbers(12, size, order, 14, seed=3)
    for start in (1, 3, 4, 9):
        assert numbers(12, size, order, 14 - start, seed=3, start=start) == whole[start:]


def test_classifying_takes_every_image_once_in_order() -> None:
    parts = [part.ravel().tolist() for part in inputs.test_batches(np.arange(7)[:, None], 3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6]]


def validated(images: int, out_of: int, take: Take) -> Training:
    return Training(validation=Validation(images, out_of, take))


def test_first_or_last_images_are_held_back() -> None:
    images = np.arange(60_000)
    kept = images[split(60_000, validated(5_000, 60_000, Take.first))]
    assert (len(kept), kept[0], kept[-1]) == (55_000, 5_000, 59_999)
    kept = images[split(60_000, validated(10_000, 60_000, Take.last))]
    assert (len(kept), kept[0], kept[-1]) == (50_000, 0, 49_999)


def test_a_smaller_set_holds_back_the_same_share() -> None:
    assert split(4_000, validated(5_000, 60_000, Take.first)) == slice(333, 4_000)


@pytest.mark.parametrize("take", list(Take))
def test_nothing_held_back_is_everything(take: Take) -> None:
    assert np.arange(9)[split(9, validated(0, 1, take))].tolist() == list(range(9))


RAW = np.random.RandomState(0).randint(0, 256, (6, 5, 4, 3)).astype(np.uint8)


def treated(steps: dict[str, dict[str, Any]], images: np.ndarray = RAW, layout: str = "NHWC") -> np.ndarray:
    before = images.copy()
    result = Treatment(steps).apply("train", images, layout)
    assert (images == before).all()  # the data set itself is never touched
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    return result


def test_no_treatment_is_the_bytes_as_numbers() -> None:
    assert (treated({}) == RAW).all()


def test_scale_multiplies_every_pixel() -> None:
    result = treated({"scale": {"factor": 1 / 255}})
    for place in np.ndindex(RAW.shape):
        assert result[place] == pytest.approx(int(RAW[place]) / 255, rel=1e-6)
    assert result.max() <= 1


def test_pad_puts_black_around() -> None:
    result = treated({"pad": {"pixels": 2}})
    assert result.shape == (6, 9, 8, 3)
    for image, row, column, channel in np.ndindex(result.shape):
        inside = 2 <= row < 7 and 2 <= column < 6
        assert result[image, row, column, channel] == (RAW[image, row - 2, column - 2, channel] if inside else 0)


def test_standardize_uses_one_mean_and_deviation_of_the_set() -> None:
    result = treated({"standardize": {}})
    pixels = [int(pixel) for pixel in RAW.ravel()]
    mean = sum(pixels) / len(pixels)
    deviation = (sum((pixel - mean) ** 2 for pixel in pixels) / len(pixels)) ** 0.5
    for place in np.ndindex(RAW.shape):
        assert result[place] == pytest.approx((int(RAW[place]) - mean) / deviation, abs=1e-5)


def test_standardize_is_exact_over_many_images() -> None:
    # More than one part of 1,000, the last one not full.
    images = np.random.RandomState(1).randint(0, 256, (2_300, 8, 8, 1)).astype(np.uint8)
    treatment = Treatment({"standardize": {}})
    result = treatment.apply("train", images, "NHWC").astype(np.float64)
    assert abs(result.mean()) < 1e-6
    assert abs(result.std() - 1) < 1e-6
    taken = treatment.statistics["train"]["standardize"]
    assert taken["mean"] == pytest.approx(images.mean(dtype=np.float64), rel=1e-12)
    assert taken["std"] == pytest.approx(images.std(dtype=np.float64), rel=1e-12)


def test_treatments_go_in_their_order() -> None:
    padded_first = treated({"pad": {"pixels": 2}, "standardize": {}})
    padded_last = treated({"standardize": {}, "pad": {"pixels": 2}})
    assert padded_first[0, 0, 0, 0] < 0  # black, as far below the mean as that is
    assert padded_last[0, 0, 0, 0] == 0
    assert abs(padded_first.mean()) < 1e-6


def test_each_set_has_its_own_statistics() -> None:
    treatment = Treatment({"standardize": {}})
    for part, images in (("train", RAW), ("test", RAW // 2)):
        result = treatment.apply(part, images, "NHWC")
        assert abs(result.mean()) < 1e-6
    statistics = treatment.statistics
    assert statistics["test"]["standardize"]["mean"] < 0.6 * statistics["train"]["standardize"]["mean"]


def test_the_mean_image_is_that_of_the_training_set() -> None:
    treatment = Treatment({"subtract_mean": {}})
    mean = RAW.astype(np.float64).mean(axis=0)
    assert treatment.apply("train", RAW, "NHWC") == pytest.approx(RAW - mean, abs=1e-4)
    other = 255 - RAW
    assert treatment.apply("test", other, "NHWC") == pytest.approx(other - mean, abs=1e-4)
    again = Treatment({"subtract_mean": {}}, json.loads(json.dumps(treatment.statistics)))
    assert (again.apply("test", other, "NCHW") == treatment.apply("test", other, "NCHW")).all()


def test_a_single_image_is_treated_as_its_set_was() -> None:
    steps: dict[str, dict[str, Any]] = {"pad": {"pixels": 1}, "standardize": {}}
    treatment = Treatment(steps)
    whole = treatment.apply("test", RAW, "NCHW")
    again = Treatment(steps, treatment.statistics)
    assert (again.apply("test", RAW[2:3], "NCHW") == whole[2:3]).all()
    assert (treatment.apply("test", RAW[2:3], "NCHW") == whole[2:3]).all()


def test_both_layouts_hold_the_same_pixels() -> None:
    steps: dict[str, dict[str, Any]] = {"pad": {"pixels": 1}, "scale": {"factor": 0.5}}
    rows, planes = treated(steps, layout="NHWC"), treated(steps, layout="NCHW")
    assert planes.shape == (6, 3, 7, 6)
    for image, row, column, channel in np.ndindex(rows.shape):
        assert planes[image, channel, row, column] == rows[image, row, column, channel]


def test_the_network_is_told_the_treated_shape() -> None:
    for steps in ({}, {"pad": {"pixels": 2}}, {"scale": {"factor": 2.0}, "pad": {"pixels": 1}}):
        result = treated(steps, layout="NCHW")
        assert Treatment(steps).shape((5, 4, 3)) == result.shape[1:]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"blur": {}}, "training.inputs.blur: no such treatment; there are scale, pad"),
        ({"scale": {}}, "training.inputs.scale={}: takes factor, given none"),
        ({"scale": {"by": 2}}, "training.inputs.scale={'by': 2}: takes factor, given by"),
        ({"standardize": {"mean": 0.5}}, "training.inputs.standardize={'mean': 0.5}: takes no options, given mean"),
        ({"pad": {"pixels": 1.5}}, "training.inputs.pad.pixels=1.5: expected a whole number of at least 0"),
        ({"pad": {"pixels": -1}}, "training.inputs.pad.pixels=-1: expected a whole number of at least 0"),
        ({"pad": {"pixels": True}}, "training.inputs.pad.pixels=True: expected a whole number of at least 0"),
        ({"scale": {"factor": "half"}}, "training.inputs.scale.factor=half: expected a number of at least 0"),
    ],
)
def test_impossible_treatment_is_one_line_with_its_key(steps: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check(steps)
    assert str(caught.value).startswith(message)
    with pytest.raises(InputError):
        Treatment(steps)
