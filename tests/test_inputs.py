"""Batches, the validation split and the treatments, against slow and obvious versions."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gtdl_mlflow.worker import inputs
from gtdl_mlflow.worker.inputs import Preprocessing, augmented, batches, prefetched, split
from gtdl_mlflow.worker.job import BatchOrder, Take, Training, Validation
from gtdl_mlflow.worker.preprocessing import PreprocessingError, check


def numbers(count: int, size: int, order: BatchOrder, steps: int, seed: int = 0, start: int = 0) -> list[list[int]]:
    """Which images the first batches hold; image i is the number i, and so is its label."""
    images, labels = np.arange(count, dtype=np.float32)[:, None], np.arange(count)
    taken = []
    for batch, marks in itertools.islice(batches(images, labels, size, order, seed, start), steps):
        assert (batch[:, 0] == marks).all()
        taken.append(marks.tolist())
    return taken


def test_sequential_batches_go_round_and_round() -> None:
    assert numbers(5, 2, BatchOrder.sequential, 6) == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1]]


@pytest.mark.parametrize("size", [1, 2])
def test_sequential_batches_go_on_where_the_next_views_are_made(size: int) -> None:
    count, steps = 2 * inputs.VIEWS + 3, 5 * inputs.VIEWS
    shown = list(itertools.chain(*numbers(count, size, BatchOrder.sequential, steps)))
    assert shown == [place % count for place in range(size * steps)]


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert numbers(3, 8, BatchOrder.sequential, 2) == [[0, 1, 2, 0, 1, 2, 0, 1], [2, 0, 1, 2, 0, 1, 2, 0]]


def test_sequential_batches_are_views() -> None:
    images = np.zeros((6, 1), np.float32)
    batch, _ = next(batches(images, np.arange(6), 3, BatchOrder.sequential, 0))
    assert np.shares_memory(batch, images)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 12, 30])
def test_every_epoch_shows_every_image_once(size: int) -> None:
    shown = list(itertools.chain(*numbers(12, size, BatchOrder.shuffled, 60 // size + 1)))
    epochs = [shown[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5  # another order each time


def test_a_shuffled_batch_goes_on_with_the_next_epoch() -> None:
    by_one = list(itertools.chain(*numbers(5, 1, BatchOrder.shuffled, 15, seed=4)))
    assert list(itertools.chain(*numbers(5, 3, BatchOrder.shuffled, 5, seed=4))) == by_one


def test_the_seed_decides_the_order() -> None:
    one = numbers(50, 10, BatchOrder.shuffled, 5, seed=1)
    assert numbers(50, 10, BatchOrder.shuffled, 5, seed=1) == one
    assert numbers(50, 10, BatchOrder.shuffled, 5, seed=2) != one
    assert numbers(50, 10, BatchOrder.sequential, 5, seed=1) == numbers(50, 10, BatchOrder.sequential, 5, seed=2)


def test_the_order_of_a_seed_never_changes() -> None:
    assert numbers(10, 10, BatchOrder.shuffled, 2, seed=1) == [
        [5, 6, 4, 9, 8, 3, 7, 0, 2, 1],
        [4, 7, 6, 8, 0, 1, 3, 5, 9, 2],
    ]


@pytest.mark.parametrize("order", list(BatchOrder))
@pytest.mark.parametrize("size", [3, 4, 17])
def test_starting_later_is_skipping(order: BatchOrder, size: int) -> None:
    whole = numbers(12, size, order, 14, seed=3)
    for start in (1, 3, 4, 9):
        assert numbers(12, size, order, 14 - start, seed=3, start=start) == whole[start:]


def test_classifying_takes_every_image_once_in_order() -> None:
    parts = [part.ravel().tolist() for part in inputs.test_batches(np.arange(7)[:, None], 3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6]]
    many = list(range(2 * inputs.VIEWS + 1))
    assert [part.tolist() for part in inputs.test_batches(np.array(many), 1)] == [[each] for each in many]


def validated(images: int, out_of: int, take: Take) -> Training:
    return Training(validation=Validation(images, out_of, take))


def test_first_or_last_images_are_held_back() -> None:
    images = np.arange(60_000)
    kept, held = (images[part] for part in split(60_000, validated(5_000, 60_000, Take.first)))
    assert (len(kept), kept[0], kept[-1]) == (55_000, 5_000, 59_999)
    assert (len(held), held[0], held[-1]) == (5_000, 0, 4_999)
    kept, held = (images[part] for part in split(60_000, validated(10_000, 60_000, Take.last)))
    assert (len(kept), kept[0], kept[-1]) == (50_000, 0, 49_999)
    assert (len(held), held[0], held[-1]) == (10_000, 50_000, 59_999)


def test_a_smaller_set_holds_back_the_same_share() -> None:
    assert split(4_000, validated(5_000, 60_000, Take.first)) == (slice(333, 4_000), slice(0, 333))


@pytest.mark.parametrize("take", list(Take))
def test_nothing_held_back_is_everything(take: Take) -> None:
    kept, held = (np.arange(9)[part].tolist() for part in split(9, validated(0, 1, take)))
    assert (kept, held) == (list(range(9)), [])


RAW = np.random.RandomState(0).randint(0, 256, (6, 5, 4, 3)).astype(np.uint8)


def treated(steps: dict[str, dict[str, Any]], images: np.ndarray = RAW, layout: str = "NHWC") -> np.ndarray:
    before = images.copy()
    result = Preprocessing(steps).apply("train", images, layout)
    assert (images == before).all()  # the data set itself is never touched
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert result.ctypes.data % inputs.ALIGNMENT == 0
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
    treatment = Preprocessing({"standardize": {}})
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
    treatment = Preprocessing({"standardize": {}})
    for part, images in (("train", RAW), ("test", RAW // 2)):
        result = treatment.apply(part, images, "NHWC")
        assert abs(result.mean()) < 1e-6
    statistics = treatment.statistics
    assert statistics["test"]["standardize"]["mean"] < 0.6 * statistics["train"]["standardize"]["mean"]


def test_the_mean_image_is_that_of_the_training_set() -> None:
    treatment = Preprocessing({"subtract_mean": {}})
    mean = RAW.astype(np.float64).mean(axis=0)
    assert treatment.apply("train", RAW, "NHWC") == pytest.approx(RAW - mean, abs=1e-4)
    other = 255 - RAW
    assert treatment.apply("test", other, "NHWC") == pytest.approx(other - mean, abs=1e-4)
    again = Preprocessing({"subtract_mean": {}}, json.loads(json.dumps(treatment.statistics)))
    assert (again.apply("test", other, "NCHW") == treatment.apply("test", other, "NCHW")).all()


def test_a_single_image_is_treated_as_its_set_was() -> None:
    steps: dict[str, dict[str, Any]] = {"pad": {"pixels": 1}, "standardize": {}}
    treatment = Preprocessing(steps)
    whole = treatment.apply("test", RAW, "NCHW")
    again = Preprocessing(steps, treatment.statistics)
    assert (again.apply("test", RAW[2:3], "NCHW") == whole[2:3]).all()
    assert (treatment.apply("test", RAW[2:3], "NCHW") == whole[2:3]).all()


def draw_one(steps: dict[str, dict[str, Any]], images: np.ndarray = RAW, seed: int = 3) -> np.ndarray:
    """A training batch, treated anew."""
    treatment = Preprocessing(steps)
    before = treatment.apply("train", images, "NHWC")
    kept = before.copy()
    result = treatment.draw(before, np.random.RandomState(seed), "NHWC")
    assert (before == kept).all()  # the data set itself is never touched
    assert result.dtype == np.float32
    return result


def test_each_image_is_standardised_by_itself() -> None:
    flat = np.full((1, 5, 4, 3), 7, np.uint8)
    result = treated({"standardize_image": {}}, np.concatenate([RAW, flat]))
    for image, raw in zip(result, RAW.astype(np.float64), strict=False):
        assert image == pytest.approx((raw - raw.mean()) / raw.std(), abs=1e-5)
    assert (result[-1] == 0).all()
    # A deviation of less than 1 / sqrt(values) is taken for that, as tf.image.per_image_standardization has it.
    nearly = flat.copy()
    nearly[0, 0, 0, 0] = 8
    deviation = nearly.astype(np.float64).std()
    assert deviation == pytest.approx(np.sqrt(1 / 60 * 59 / 60))
    assert deviation < 1 / np.sqrt(60)
    assert treated({"standardize_image": {}}, nearly)[0, 0, 0, 0] == pytest.approx(59 / 60 * np.sqrt(60), rel=1e-5)


def test_the_central_crop_is_in_the_middle() -> None:
    assert (treated({"central_crop": {"pixels": 2}}) == RAW[:, 1:3, 1:3]).all()
    # When testing, a random crop is the central one.
    assert (
        Preprocessing({"random_crop": {"pixels": 2, "padding": 0}}).apply("test", RAW, "NHWC") == RAW[:, 1:3, 1:3]
    ).all()


def test_random_crops_are_somewhere_in_the_image_and_everywhere() -> None:
    images = np.repeat(RAW[:1], 600, axis=0)
    result = draw_one({"random_crop": {"pixels": 3, "padding": 0}}, images)
    assert result.shape == (600, 3, 3, 3)
    places = {(top, left): RAW[0, top : top + 3, left : left + 3] for top in range(3) for left in range(2)}
    found = [[place for place, crop in places.items() if (crop == image).all()] for image in result]
    assert all(len(each) == 1 for each in found)
    counts = [sum(each == [place] for each in found) for place in places]
    assert min(counts) > 60  # 100 expected, 9 of deviation


def test_half_of_the_images_are_flipped() -> None:
    images = np.repeat(RAW[:1], 400, axis=0)
    result = draw_one({"random_flip": {}}, images)
    flipped = (result == RAW[0, :, ::-1]).all(axis=(1, 2, 3))
    assert ((result == RAW[0]).all(axis=(1, 2, 3)) != flipped).all()
    assert 150 < flipped.sum() < 250
    assert (Preprocessing({"random_flip": {}}).apply("test", images, "NHWC") == images).all()


def test_brightness_moves_each_image_as_a_whole() -> None:
    images = np.repeat(RAW[:1], 2000, axis=0)
    moved = draw_one({"random_brightness": {"delta": 63}}, images) - RAW[0]
    assert np.ptp(moved, axis=(1, 2, 3)).max() < 1e-4
    values = moved[:, 0, 0, 0]
    assert -63 <= values.min() < -62 < 62 < values.max() <= 63
    assert values.std() == pytest.approx(63 / np.sqrt(3), rel=0.05)


def test_contrast_stretches_each_channel_about_its_mean() -> None:
    images = np.repeat(RAW[:1], 2000, axis=0)
    result = draw_one({"random_contrast": {"lower": 0.2, "upper": 1.8}}, images).astype(np.float64)
    means = RAW[0].mean(axis=(0, 1))
    factors = (result[:, 0, 0, 0] - means[0]) / (RAW[0, 0, 0, 0] - means[0])
    assert result == pytest.approx(means + factors[:, None, None, None] * (RAW[0] - means), abs=1e-3)
    assert 0.2 - 1e-5 <= factors.min() < 0.21 < 1.79 < factors.max() <= 1.8 + 1e-5


def test_a_batch_is_drawn_from_the_seed_and_its_iteration() -> None:
    treatment = Preprocessing({"random_crop": {"pixels": 3, "padding": 0}, "scale": {"factor": 0.5}})
    images = np.repeat(RAW, 20, axis=0)
    feed = [(images, np.arange(120))] * 3
    once, again = (list(augmented(feed, treatment, "NCHW", 1)) for _ in range(2))
    assert all((one[0] == other[0]).all() for one, other in zip(once, again, strict=True))
    assert (next(iter(augmented(feed[2:], treatment, "NCHW", 1, start=2)))[0] == once[2][0]).all()
    assert (once[0][0] != once[1][0]).any()
    assert (next(iter(augmented(feed, treatment, "NCHW", 2)))[0] != once[0][0]).any()
    assert once[0][0].shape == (120, 3, 3, 3)
    assert once[0][0].max() <= 127.5


def test_batches_made_ahead_are_the_same_and_leave_no_thread() -> None:
    before = threading.active_count()
    feed = batches(np.arange(10.0), np.arange(10), 3, BatchOrder.sequential, 0)
    wanted = [labels.tolist() for _, labels in itertools.islice(feed, 50)]
    early = prefetched(batches(np.arange(10.0), np.arange(10), 3, BatchOrder.sequential, 0))
    assert [labels.tolist() for _, labels in itertools.islice(early, 50)] == wanted
    assert threading.active_count() == before + 1
    early.close()
    assert threading.active_count() == before


def test_a_fault_in_the_thread_reaches_who_asks() -> None:
    def broken() -> Iterator[Any]:
        yield "first"
        raise MemoryError("no room")

    early = prefetched(broken())
    assert next(early) == "first"
    with pytest.raises(MemoryError, match="no room"):
        next(early)


def test_yuv_is_torch7s() -> None:
    result = treated({"yuv": {}})
    for image, row, column in np.ndindex(RAW.shape[:3]):
        red, green, blue = (float(value) for value in RAW[image, row, column])
        y, u, v = result[image, row, column]
        assert y == pytest.approx(0.299 * red + 0.587 * green + 0.114 * blue, abs=1e-3)
        assert u == pytest.approx(0.492 * (blue - y), abs=0.1)
        assert v == pytest.approx(0.877 * (red - y), abs=0.1)
    assert (treated({"yuv": {}}, RAW[..., :1]) == RAW[..., :1]).all()


def test_y_is_normalised_by_its_neighbourhood_and_u_and_v_by_the_training_set() -> None:
    images = np.random.RandomState(4).randint(0, 256, (3, 9, 8, 3)).astype(np.uint8)
    treatment = Preprocessing({"contrastive_normalization": {}})
    result = treatment.apply("train", images, "NHWC")
    weights = {(i, j): math.exp(-((i / 1.75) ** 2) / 2) * math.exp(-((j / 1.75) ** 2) / 2)
               for i in range(-3, 4) for j in range(-3, 4)}  # fmt: skip

    def near(plane: np.ndarray, row: int, column: int) -> tuple[float, float]:
        """The weighted sum of what lies around a place, and the weights that lie inside."""
        inside = [(weight, plane[row + i, column + j]) for (i, j), weight in weights.items()
                  if 0 <= row + i < 9 and 0 <= column + j < 8]  # fmt: skip
        whole = sum(weights.values())
        return sum(w * value for w, value in inside) / whole, sum(w for w, _ in inside) / whole

    for image in range(3):
        plane = images[image, :, :, 0].astype(np.float64)
        centred, wanted = np.zeros_like(plane), np.zeros_like(plane)
        for row, column in np.ndindex(plane.shape):
            total, share = near(plane, row, column)
            centred[row, column] = plane[row, column] - total / share
        for row, column in np.ndindex(plane.shape):
            total, share = near(centred**2, row, column)
            wanted[row, column] = centred[row, column] / (math.sqrt(total) / share)
        assert result[image, :, :, 0] == pytest.approx(wanted, abs=1e-3)
    u = images[..., 1].astype(np.float64)
    assert result[..., 1] == pytest.approx(-(u - u.mean()) / u.std(), abs=1e-4)
    later = treatment.apply("test", images[:1] // 2, "NHWC")
    assert later[..., 1] == pytest.approx(-(images[:1, ..., 1] // 2 - u.mean()) / u.std(), abs=1e-4)


def test_a_plane_of_one_colour_is_not_divided_by_nothing() -> None:
    result = treated({"contrastive_normalization": {}}, np.full((2, 9, 9, 3), 100, np.uint8))
    assert abs(result).max() < 1


def test_both_layouts_hold_the_same_pixels() -> None:
    steps: dict[str, dict[str, Any]] = {"pad": {"pixels": 1}, "scale": {"factor": 0.5}}
    rows, planes = treated(steps, layout="NHWC"), treated(steps, layout="NCHW")
    assert planes.shape == (6, 3, 7, 6)
    for image, row, column, channel in np.ndindex(rows.shape):
        assert planes[image, channel, row, column] == rows[image, row, column, channel]


def test_the_network_is_told_the_treated_shape() -> None:
    for steps in ({}, {"pad": {"pixels": 2}}, {"scale": {"factor": 2.0}, "pad": {"pixels": 1}}):
        result = treated(steps, layout="NCHW")
        assert Preprocessing(steps).shape((5, 4, 3)) == result.shape[1:]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"blur": {}}, "training.preprocessing.blur: no such treatment; there are scale, pad"),
        ({"scale": {}}, "training.preprocessing.scale={}: takes factor, given none"),
        ({"scale": {"by": 2}}, "training.preprocessing.scale={'by': 2}: takes factor, given by"),
        (
            {"standardize": {"mean": 0.5}},
            "training.preprocessing.standardize={'mean': 0.5}: takes no options, given mean",
        ),
        (
            {"random_flip": {}, "subtract_mean": {}},
            "training.preprocessing.subtract_mean: takes statistics of the whole set, so it must stand before random_flip",
        ),
        ({"pad": {"pixels": 1.5}}, "training.preprocessing.pad.pixels=1.5: expected a whole number of at least 0"),
        ({"pad": {"pixels": -1}}, "training.preprocessing.pad.pixels=-1: expected a whole number of at least 0"),
        ({"pad": {"pixels": True}}, "training.preprocessing.pad.pixels=True: expected a whole number of at least 0"),
        ({"scale": {"factor": "half"}}, "training.preprocessing.scale.factor=half: expected a number of at least 0"),
    ],
)
def test_impossible_treatment_is_one_line_with_its_key(steps: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(PreprocessingError) as caught:
        check(steps)
    assert str(caught.value).startswith(message)
    with pytest.raises(PreprocessingError):
        Preprocessing(steps)


def test_an_image_too_small_for_its_crop_is_said() -> None:
    with pytest.raises(
        PreprocessingError, match=r"training.preprocessing.random_crop.pixels=24: expected 1 to 4, the images are 5x4"
    ):
        Preprocessing({"random_crop": {"pixels": 24, "padding": 0}}).shape((5, 4, 3))
