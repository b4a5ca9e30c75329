"""Batches, the validation split and preprocessing, compared with slow and simple versions."""

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
from gtdl_mlflow.worker.job import BatchOrder, HeldOut, Training, Validation
from gtdl_mlflow.worker.preprocessing import PreprocessingError, check


def numbers(count: int, size: int, order: BatchOrder, steps: int, seed: int = 0, start: int = 0) -> list[list[int]]:
    """Return the numbers of the images in the first batches; image i and its label have the value i."""
    images, labels = np.arange(count, dtype=np.float32)[:, None], np.arange(count)
    taken = []
    for batch, marks in itertools.islice(batches(images, labels, size, order, seed, start), steps):
        assert (batch[:, 0] == marks).all()
        taken.append(marks.tolist())
    return taken


def test_sequential_batches_wrap_around() -> None:
    assert numbers(5, 2, BatchOrder.sequential, 6) == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1]]


@pytest.mark.parametrize("size", [1, 2])
def test_sequential_batches_continue_across_groups_of_views(size: int) -> None:
    count, steps = 2 * inputs.VIEWS + 3, 5 * inputs.VIEWS
    shown = list(itertools.chain(*numbers(count, size, BatchOrder.sequential, steps)))
    assert shown == [position % count for position in range(size * steps)]


def test_batch_can_be_larger_than_the_data() -> None:
    assert numbers(3, 8, BatchOrder.sequential, 2) == [[0, 1, 2, 0, 1, 2, 0, 1], [2, 0, 1, 2, 0, 1, 2, 0]]


def test_sequential_batches_are_views() -> None:
    images = np.zeros((6, 1), np.float32)
    batch, _ = next(batches(images, np.arange(6), 3, BatchOrder.sequential, 0))
    assert np.shares_memory(batch, images)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 12, 30])
def test_every_epoch_has_every_image_once(size: int) -> None:
    shown = list(itertools.chain(*numbers(12, size, BatchOrder.shuffled, 60 // size + 1)))
    epochs = [shown[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5  # a different order each time


def test_shuffled_batch_continues_with_the_next_epoch() -> None:
    by_one = list(itertools.chain(*numbers(5, 1, BatchOrder.shuffled, 15, seed=4)))
    assert list(itertools.chain(*numbers(5, 3, BatchOrder.shuffled, 5, seed=4))) == by_one


def test_order_depends_on_the_seed() -> None:
    one = numbers(50, 10, BatchOrder.shuffled, 5, seed=1)
    assert numbers(50, 10, BatchOrder.shuffled, 5, seed=1) == one
    assert numbers(50, 10, BatchOrder.shuffled, 5, seed=2) != one
    assert numbers(50, 10, BatchOrder.sequential, 5, seed=1) == numbers(50, 10, BatchOrder.sequential, 5, seed=2)


def test_order_of_a_seed_never_changes() -> None:
    assert numbers(10, 10, BatchOrder.shuffled, 2, seed=1) == [
        [8, 5, 1, 9, 6, 2, 3, 4, 7, 0],
        [7, 3, 4, 0, 2, 8, 6, 5, 9, 1],
    ]


@pytest.mark.parametrize("order", list(BatchOrder))
@pytest.mark.parametrize("size", [3, 4, 17])
def test_later_start_equals_skipped_batches(order: BatchOrder, size: int) -> None:
    whole = numbers(12, size, order, 14, seed=3)
    for start in (1, 3, 4, 9):
        assert numbers(12, size, order, 14 - start, seed=3, start=start) == whole[start:]


def test_test_batches_have_every_image_once_in_order() -> None:
    parts = [part.ravel().tolist() for part in inputs.test_batches(np.arange(7)[:, None], 3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6]]
    many = list(range(2 * inputs.VIEWS + 1))
    assert [part.tolist() for part in inputs.test_batches(np.array(many), 1)] == [[each] for each in many]


def training_with_validation(images: int, out_of: int, take: HeldOut) -> Training:
    return Training(validation=Validation(images, out_of, take))


def test_first_or_last_images_are_held_out() -> None:
    images = np.arange(60_000)
    trained, held_out = (images[part] for part in split(60_000, training_with_validation(5_000, 60_000, HeldOut.first)))
    assert (len(trained), trained[0], trained[-1]) == (55_000, 5_000, 59_999)
    assert (len(held_out), held_out[0], held_out[-1]) == (5_000, 0, 4_999)
    trained, held_out = (images[part] for part in split(60_000, training_with_validation(10_000, 60_000, HeldOut.last)))
    assert (len(trained), trained[0], trained[-1]) == (50_000, 0, 49_999)
    assert (len(held_out), held_out[0], held_out[-1]) == (10_000, 50_000, 59_999)


def test_smaller_set_holds_out_the_same_share() -> None:
    assert split(4_000, training_with_validation(5_000, 60_000, HeldOut.first)) == (slice(333, 4_000), slice(0, 333))


@pytest.mark.parametrize("take", list(HeldOut))
def test_without_validation_all_images_are_trained_on(take: HeldOut) -> None:
    trained, held_out = (np.arange(9)[part].tolist() for part in split(9, training_with_validation(0, 1, take)))
    assert (trained, held_out) == (list(range(9)), [])


RAW = np.random.RandomState(0).randint(0, 256, (6, 5, 4, 3)).astype(np.uint8)


def preprocessed(steps: dict[str, dict[str, Any]], images: np.ndarray = RAW, layout: str = "NHWC") -> np.ndarray:
    before = images.copy()
    result = Preprocessing(steps).apply("train", images, layout)
    assert (images == before).all()  # the data set itself is unchanged
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert result.ctypes.data % inputs.ALIGNMENT == 0
    return result


def test_without_operations_pixels_are_unchanged() -> None:
    assert (preprocessed({}) == RAW).all()


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    result = preprocessed({"normalize": {"mean": 127.5, "deviation": 127.5}})
    assert result == pytest.approx((RAW.astype(np.float64) - 127.5) / 127.5, rel=1e-6)


def test_scale_multiplies_every_pixel() -> None:
    result = preprocessed({"scale": {"factor": 1 / 255}})
    for index in np.ndindex(RAW.shape):
        assert result[index] == pytest.approx(int(RAW[index]) / 255, rel=1e-6)
    assert result.max() <= 1


def test_pad_surrounds_the_image_with_zeros() -> None:
    result = preprocessed({"pad": {"pixels": 2}})
    assert result.shape == (6, 9, 8, 3)
    for image, row, column, channel in np.ndindex(result.shape):
        inside = 2 <= row < 7 and 2 <= column < 6
        assert result[image, row, column, channel] == (RAW[image, row - 2, column - 2, channel] if inside else 0)


def test_standardize_uses_one_mean_and_deviation_of_the_set() -> None:
    result = preprocessed({"standardize": {}})
    pixels = [int(pixel) for pixel in RAW.ravel()]
    mean = sum(pixels) / len(pixels)
    deviation = (sum((pixel - mean) ** 2 for pixel in pixels) / len(pixels)) ** 0.5
    for index in np.ndindex(RAW.shape):
        assert result[index] == pytest.approx((int(RAW[index]) - mean) / deviation, abs=1e-5)


def test_standardize_is_exact_over_many_images() -> None:
    # Statistics are summed in parts of 1,000 images; the last part here is not full.
    images = np.random.RandomState(1).randint(0, 256, (2_300, 8, 8, 1)).astype(np.uint8)
    preprocessing = Preprocessing({"standardize": {}})
    result = preprocessing.apply("train", images, "NHWC").astype(np.float64)
    assert abs(result.mean()) < 1e-6
    assert abs(result.std() - 1) < 1e-6
    statistics = preprocessing.statistics["train"]["standardize"]
    assert statistics["mean"] == pytest.approx(images.mean(dtype=np.float64), rel=1e-12)
    assert statistics["std"] == pytest.approx(images.std(dtype=np.float64), rel=1e-12)


def test_operations_are_applied_in_their_order() -> None:
    padded_first = preprocessed({"pad": {"pixels": 2}, "standardize": {}})
    padded_last = preprocessed({"standardize": {}, "pad": {"pixels": 2}})
    assert padded_first[0, 0, 0, 0] < 0  # standardized zeros are below the mean
    assert padded_last[0, 0, 0, 0] == 0
    assert abs(padded_first.mean()) < 1e-6


def test_each_set_has_its_own_statistics() -> None:
    preprocessing = Preprocessing({"standardize": {}})
    for part, images in (("train", RAW), ("test", RAW // 2)):
        result = preprocessing.apply(part, images, "NHWC")
        assert abs(result.mean()) < 1e-6
    statistics = preprocessing.statistics
    assert statistics["test"]["standardize"]["mean"] < 0.6 * statistics["train"]["standardize"]["mean"]


def test_subtract_mean_uses_the_mean_image_of_the_training_set() -> None:
    preprocessing = Preprocessing({"subtract_mean": {}})
    mean = RAW.astype(np.float64).mean(axis=0)
    assert preprocessing.apply("train", RAW, "NHWC") == pytest.approx(RAW - mean, abs=1e-4)
    other = 255 - RAW
    assert preprocessing.apply("test", other, "NHWC") == pytest.approx(other - mean, abs=1e-4)
    again = Preprocessing({"subtract_mean": {}}, json.loads(json.dumps(preprocessing.statistics)))
    assert (again.apply("test", other, "NCHW") == preprocessing.apply("test", other, "NCHW")).all()


def test_single_image_is_preprocessed_like_its_set() -> None:
    steps: dict[str, dict[str, Any]] = {"pad": {"pixels": 1}, "standardize": {}}
    preprocessing = Preprocessing(steps)
    whole = preprocessing.apply("test", RAW, "NCHW")
    again = Preprocessing(steps, preprocessing.statistics)
    assert (again.apply("test", RAW[2:3], "NCHW") == whole[2:3]).all()
    assert (preprocessing.apply("test", RAW[2:3], "NCHW") == whole[2:3]).all()


def augmented_once(steps: dict[str, dict[str, Any]], images: np.ndarray = RAW, seed: int = 3) -> np.ndarray:
    """Return a training batch after augmentation."""
    preprocessing = Preprocessing(steps)
    before = preprocessing.apply("train", images, "NHWC")
    copy = before.copy()
    result = preprocessing.augment(before, np.random.RandomState(seed), "NHWC")
    assert (before == copy).all()  # the data set itself is unchanged
    assert result.dtype == np.float32
    return result


def test_standardize_image_uses_the_statistics_of_each_image() -> None:
    flat = np.full((1, 5, 4, 3), 7, np.uint8)
    result = preprocessed({"standardize_image": {}}, np.concatenate([RAW, flat]))
    for image, raw in zip(result, RAW.astype(np.float64), strict=False):
        assert image == pytest.approx((raw - raw.mean()) / raw.std(), abs=1e-5)
    assert (result[-1] == 0).all()
    # A deviation below 1 / sqrt(values) is replaced by that, as in tf.image.per_image_standardization.
    nearly = flat.copy()
    nearly[0, 0, 0, 0] = 8
    deviation = nearly.astype(np.float64).std()
    assert deviation == pytest.approx(np.sqrt(1 / 60 * 59 / 60))
    assert deviation < 1 / np.sqrt(60)
    assert preprocessed({"standardize_image": {}}, nearly)[0, 0, 0, 0] == pytest.approx(59 / 60 * np.sqrt(60), rel=1e-5)


def test_central_crop_is_in_the_middle() -> None:
    assert (preprocessed({"central_crop": {"pixels": 2}}) == RAW[:, 1:3, 1:3]).all()
    # In testing, a random crop is the central one.
    assert (
        Preprocessing({"random_crop": {"pixels": 2, "padding": 0}}).apply("test", RAW, "NHWC") == RAW[:, 1:3, 1:3]
    ).all()


def test_random_crops_are_uniform_over_all_positions() -> None:
    images = np.repeat(RAW[:1], 600, axis=0)
    result = augmented_once({"random_crop": {"pixels": 3, "padding": 0}}, images)
    assert result.shape == (600, 3, 3, 3)
    crops = {(top, left): RAW[0, top : top + 3, left : left + 3] for top in range(3) for left in range(2)}
    positions = [[position for position, crop in crops.items() if (crop == image).all()] for image in result]
    assert all(len(each) == 1 for each in positions)
    counts = [sum(each == [position] for each in positions) for position in crops]
    assert min(counts) > 60  # 100 expected, with a standard deviation of 9


def test_half_of_the_images_are_flipped() -> None:
    images = np.repeat(RAW[:1], 400, axis=0)
    result = augmented_once({"random_flip": {}}, images)
    flipped = (result == RAW[0, :, ::-1]).all(axis=(1, 2, 3))
    assert ((result == RAW[0]).all(axis=(1, 2, 3)) != flipped).all()
    assert 150 < flipped.sum() < 250
    assert (Preprocessing({"random_flip": {}}).apply("test", images, "NHWC") == images).all()


def test_brightness_adds_one_value_per_image() -> None:
    images = np.repeat(RAW[:1], 2000, axis=0)
    difference = augmented_once({"random_brightness": {"delta": 63}}, images) - RAW[0]
    assert np.ptp(difference, axis=(1, 2, 3)).max() < 1e-4
    values = difference[:, 0, 0, 0]
    assert -63 <= values.min() < -62 < 62 < values.max() <= 63
    assert values.std() == pytest.approx(63 / np.sqrt(3), rel=0.05)


def test_contrast_scales_each_channel_about_its_mean() -> None:
    images = np.repeat(RAW[:1], 2000, axis=0)
    result = augmented_once({"random_contrast": {"lower": 0.2, "upper": 1.8}}, images).astype(np.float64)
    means = RAW[0].mean(axis=(0, 1))
    factors = (result[:, 0, 0, 0] - means[0]) / (RAW[0, 0, 0, 0] - means[0])
    assert result == pytest.approx(means + factors[:, None, None, None] * (RAW[0] - means), abs=1e-3)
    assert 0.2 - 1e-5 <= factors.min() < 0.21 < 1.79 < factors.max() <= 1.8 + 1e-5


def test_augmentation_depends_on_the_seed_and_the_iteration() -> None:
    preprocessing = Preprocessing({"random_crop": {"pixels": 3, "padding": 0}, "scale": {"factor": 0.5}})
    images = np.repeat(RAW, 20, axis=0)
    source = [(images, np.arange(120))] * 3
    once, again = (list(augmented(source, preprocessing, "NCHW", 1)) for _ in range(2))
    assert all((one[0] == other[0]).all() for one, other in zip(once, again, strict=True))
    assert (next(iter(augmented(source[2:], preprocessing, "NCHW", 1, start=2)))[0] == once[2][0]).all()
    assert (once[0][0] != once[1][0]).any()
    assert (next(iter(augmented(source, preprocessing, "NCHW", 2)))[0] != once[0][0]).any()
    assert once[0][0].shape == (120, 3, 3, 3)
    assert once[0][0].max() <= 127.5


def test_prefetched_batches_are_the_same_and_leave_no_thread() -> None:
    before = threading.active_count()
    source = batches(np.arange(10.0), np.arange(10), 3, BatchOrder.sequential, 0)
    expected = [labels.tolist() for _, labels in itertools.islice(source, 50)]
    ahead = prefetched(batches(np.arange(10.0), np.arange(10), 3, BatchOrder.sequential, 0))
    assert [labels.tolist() for _, labels in itertools.islice(ahead, 50)] == expected
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before


def test_error_in_the_prefetch_thread_is_raised_to_the_consumer() -> None:
    def broken() -> Iterator[Any]:
        yield "first"
        raise MemoryError("no room")

    ahead = prefetched(broken())
    assert next(ahead) == "first"
    with pytest.raises(MemoryError, match="no room"):
        next(ahead)


def test_yuv_matches_torch7() -> None:
    result = preprocessed({"yuv": {}})
    for image, row, column in np.ndindex(RAW.shape[:3]):
        red, green, blue = (float(value) for value in RAW[image, row, column])
        y, u, v = result[image, row, column]
        assert y == pytest.approx(0.299 * red + 0.587 * green + 0.114 * blue, abs=1e-3)
        assert u == pytest.approx(0.492 * (blue - y), abs=0.1)
        assert v == pytest.approx(0.877 * (red - y), abs=0.1)
    assert (preprocessed({"yuv": {}}, RAW[..., :1]) == RAW[..., :1]).all()


def test_contrastive_normalization_of_y_is_local_and_of_u_and_v_global() -> None:
    images = np.random.RandomState(4).randint(0, 256, (3, 9, 8, 3)).astype(np.uint8)
    preprocessing = Preprocessing({"contrastive_normalization": {}})
    result = preprocessing.apply("train", images, "NHWC")
    weights = {(i, j): math.exp(-((i / 1.75) ** 2) / 2) * math.exp(-((j / 1.75) ** 2) / 2)
               for i in range(-3, 4) for j in range(-3, 4)}  # fmt: skip

    def neighbourhood(plane: np.ndarray, row: int, column: int) -> tuple[float, float]:
        """Return the weighted sum of the neighbourhood, and the weight that lies inside the image."""
        inside = [(weight, plane[row + i, column + j]) for (i, j), weight in weights.items()
                  if 0 <= row + i < 9 and 0 <= column + j < 8]  # fmt: skip
        whole = sum(weights.values())
        return sum(w * value for w, value in inside) / whole, sum(w for w, _ in inside) / whole

    for image in range(3):
        plane = images[image, :, :, 0].astype(np.float64)
        centred, expected = np.zeros_like(plane), np.zeros_like(plane)
        for row, column in np.ndindex(plane.shape):
            total, share = neighbourhood(plane, row, column)
            centred[row, column] = plane[row, column] - total / share
        for row, column in np.ndindex(plane.shape):
            total, share = neighbourhood(centred**2, row, column)
            expected[row, column] = centred[row, column] / (math.sqrt(total) / share)
        assert result[image, :, :, 0] == pytest.approx(expected, abs=1e-3)
    u = images[..., 1].astype(np.float64)
    assert result[..., 1] == pytest.approx(-(u - u.mean()) / u.std(), abs=1e-4)
    later = preprocessing.apply("test", images[:1] // 2, "NHWC")
    assert later[..., 1] == pytest.approx(-(images[:1, ..., 1] // 2 - u.mean()) / u.std(), abs=1e-4)


def test_contrastive_normalization_of_one_colour_is_finite() -> None:
    result = preprocessed({"contrastive_normalization": {}}, np.full((2, 9, 9, 3), 100, np.uint8))
    assert abs(result).max() < 1


def test_both_layouts_have_the_same_pixels() -> None:
    steps: dict[str, dict[str, Any]] = {"pad": {"pixels": 1}, "scale": {"factor": 0.5}}
    rows, planes = preprocessed(steps, layout="NHWC"), preprocessed(steps, layout="NCHW")
    assert planes.shape == (6, 3, 7, 6)
    for image, row, column, channel in np.ndindex(rows.shape):
        assert planes[image, channel, row, column] == rows[image, row, column, channel]


def test_shape_is_that_of_preprocessed_images() -> None:
    for steps in ({}, {"pad": {"pixels": 2}}, {"scale": {"factor": 2.0}, "pad": {"pixels": 1}}):
        result = preprocessed(steps, layout="NCHW")
        assert Preprocessing(steps).shape((5, 4, 3)) == result.shape[1:]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"blur": {}}, "training.preprocessing.blur: unknown operation; available: scale, pad"),
        ({"scale": {}}, "training.preprocessing.scale={}: expected factor, given none"),
        ({"scale": {"by": 2}}, "training.preprocessing.scale={'by': 2}: expected factor, given by"),
        (
            {"standardize": {"mean": 0.5}},
            "training.preprocessing.standardize={'mean': 0.5}: expected no options, given mean",
        ),
        (
            {"random_flip": {}, "subtract_mean": {}},
            "training.preprocessing.subtract_mean: needs statistics of the whole set, so it must precede random_flip",
        ),
        (
            {"normalize": {"mean": 1, "deviation": 0}},
            "training.preprocessing.normalize.deviation=0: expected a number above 0",
        ),
        ({"pad": {"pixels": 1.5}}, "training.preprocessing.pad.pixels=1.5: expected a whole number of at least 0"),
        ({"pad": {"pixels": -1}}, "training.preprocessing.pad.pixels=-1: expected a whole number of at least 0"),
        ({"pad": {"pixels": True}}, "training.preprocessing.pad.pixels=True: expected a whole number of at least 0"),
        ({"scale": {"factor": "half"}}, "training.preprocessing.scale.factor=half: expected a number of at least 0"),
    ],
)
def test_invalid_preprocessing_is_refused_in_one_line_with_its_key(
    steps: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(PreprocessingError) as caught:
        check(steps)
    assert str(caught.value).startswith(message)
    with pytest.raises(PreprocessingError):
        Preprocessing(steps)


def test_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(
        PreprocessingError, match=r"training.preprocessing.random_crop.pixels=24: expected 1 to 4, the images are 5x4"
    ):
        Preprocessing({"random_crop": {"pixels": 24, "padding": 0}}).shape((5, 4, 3))
