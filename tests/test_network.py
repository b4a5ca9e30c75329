"""Shapes, counts and paddings, calculated by hand from the originals, and the errors of invalid networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.networks import NORMAL, NORMALIZE, TANH, average, conf_layers, convolution, dense, maximum, numbered

from gtdl_mlflow.worker import initialization, numpy_network
from gtdl_mlflow.worker.layers import TYPES, AveragePool, Convolution, Initializer, MaxPool, NetworkError
from gtdl_mlflow.worker.network import Network, build, expand_blocks


def residual(depth: int) -> int:
    """Return the parameters of He et al.'s pre-activation network for CIFAR-10, counted from the paper's table."""
    count, before = 3 + 3 * 16 * 9, 16  # the shifts of the images' normalization, the first convolution
    for maps in (16, 32, 64):
        for unit in range((depth - 2) // 6):
            count += 2 * before + 9 * before * maps + 2 * maps + 9 * maps * maps
            count += before * maps if unit == 0 else 0  # the projection
            before = maps
    return count + 2 * 64 + 64 * 10 + 10


RELU = {"type": "relu"}


@pytest.mark.parametrize(
    ("layers", "shape", "count"),
    [
        pytest.param(conf_layers("tensorflow_mnist"), (1, 28, 28), 3_274_634, id="tensorflow_mnist"),
        pytest.param(conf_layers("caffe_mnist"), (1, 28, 28), 431_080, id="caffe_mnist"),
        pytest.param(conf_layers("torch_mnist"), (1, 32, 32), 169_506, id="torch_mnist"),
        pytest.param(conf_layers("reference_mnist"), (1, 28, 28), 7_850, id="reference_mnist"),
        pytest.param(conf_layers("theano_mnist"), (1, 28, 28), 431_080, id="theano_mnist"),
        pytest.param(conf_layers("mxnet_mnist"), (1, 28, 28), 431_080, id="mxnet_mnist"),
        pytest.param(conf_layers("tensorflow_cifar10"), (3, 24, 24), 1_068_298, id="tensorflow_cifar10"),
        pytest.param(conf_layers("caffe_cifar10"), (3, 32, 32), 145_578, id="caffe_cifar10"),
        pytest.param(conf_layers("torch_cifar10"), (3, 32, 32), 846_890, id="torch_cifar10"),
        pytest.param(conf_layers("theano_cifar10"), (3, 32, 32), 14_318, id="theano_cifar10"),
        pytest.param(conf_layers("mxnet_cifar10", depth=20), (3, 28, 28), residual(20), id="mxnet_cifar10, depth 20"),
        pytest.param(conf_layers("mxnet_cifar10"), (3, 28, 28), residual(110), id="mxnet_cifar10"),
    ],
)
def test_networks_have_the_parameters_of_the_originals(layers: Any, shape: tuple[int, ...], count: int) -> None:
    assert build(layers, shape, 10).parameter_count == count


def sides(network: Network) -> list[int]:
    """Return the heights of the layers' outputs, without repetitions."""
    heights = [node.output[1] for node in network.nodes if len(node.output) == 3]
    return [height for height, before in zip(heights, [0, *heights], strict=False) if height != before]


def test_heights_of_layers_match_the_originals() -> None:
    assert sides(build(conf_layers("torch_mnist"), (1, 32, 32), 10)) == [28, 10, 6, 3]
    assert sides(build(conf_layers("caffe_mnist"), (1, 28, 28), 10)) == [24, 12, 8, 4]
    assert sides(build(conf_layers("tensorflow_mnist"), (1, 28, 28), 10)) == [28, 14, 7]
    assert sides(build(conf_layers("tensorflow_cifar10"), (3, 24, 24), 10)) == [24, 12, 6]
    assert sides(build(conf_layers("caffe_cifar10"), (3, 32, 32), 10)) == [32, 16, 8, 4]
    assert sides(build(conf_layers("torch_cifar10"), (3, 32, 32), 10)) == [28, 14, 10, 5]
    assert sides(build(conf_layers("theano_cifar10"), (3, 32, 32), 10)) == [30, 10, 8, 4]


def test_flops_count_products_and_sums() -> None:
    network = build(conf_layers("caffe_mnist"), (1, 28, 28), 10)
    products = 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 + 800 * 500 + 500 * 10
    assert network.flops_per_image == 2 * products


def test_flops_exclude_unconnected_maps() -> None:
    network = build(numbered(convolution(4, 3, connections=1), dense()), (3, 5, 5), 10)
    assert network.flops_per_image == 2 * (3 * 3 * 4 * 9 + 36 * 10)


# (layer, sides in, sides out, ((top, bottom), (left, right))), each calculated by hand.
PADDINGS = [
    # TensorFlow's SAME: ceil(5 / 2) = 3 windows need 2 * 2 + 3 = 7 cells.
    (convolution(1, 3, stride=2, padding="same"), (5, 5), (3, 3), ((1, 1), (1, 1))),
    # An even number of cells: 3 windows need 7; the additional cell goes to the end.
    (convolution(1, 3, stride=2, padding="same"), (6, 6), (3, 3), ((0, 1), (0, 1))),
    (convolution(1, 4, padding="same"), (8, 8), (8, 8), ((1, 2), (1, 2))),
    (convolution(1, 1, stride=3, padding="same"), (7, 8), (3, 3), ((0, 0), (0, 0))),
    (convolution(1, 3, padding=2), (4, 6), (6, 8), ((2, 2), (2, 2))),
    (convolution(1, 3, stride=2), (8, 9), (3, 4), ((0, 0), (0, 0))),
    (maximum(3, 2, padding="same"), (24, 25), (12, 13), ((0, 1), (1, 1))),
    (maximum(2, 2, padding="same"), (7, 8), (4, 4), ((0, 1), (0, 0))),
    # Torch7: 28 with one cell around is 30, ten windows of three.
    (maximum(3, 3, padding=1), (28, 28), (10, 10), ((1, 1), (1, 1))),
    # Caffe: ceil((32 - 3) / 2) + 1 = 16 windows need 33.
    (maximum(3, 2, rounding="ceil"), (32, 16), (16, 8), ((0, 1), (0, 1))),
    (maximum(2, 2, rounding="ceil"), (7, 8), (4, 4), ((0, 1), (0, 0))),
    # ceil((6 + 2 - 3) / 2) + 1 = 4 windows from -1 to 8: one overhangs by two.
    (average(3, 2, padding=1, rounding="ceil"), (6, 7), (4, 4), ((1, 2), (1, 1))),
    # ceil((4 + 2 - 2) / 2) + 1 = 3: the third begins at cell 3, the last one.
    (average(2, 2, padding=1, rounding="ceil"), (4, 5), (3, 3), ((1, 1), (1, 0))),
    # ceil((3 + 2 - 2) / 3) + 1 = 2: the second begins at 2, the last cell. With 2 cells it would begin in the padding.
    (maximum(2, 3, padding=1, rounding="ceil"), (3, 2), (2, 1), ((1, 1), (1, 0))),
    # A stride beyond the end: a third window would begin at cell 8 of 7.
    (maximum(2, 4, rounding="ceil"), (7, 6), (2, 2), ((0, 0), (0, 0))),
    # Larger than the image: one window, clipped.
    (maximum(3, 2, rounding="ceil"), (2, 3), (1, 1), ((0, 1), (0, 0))),
    (maximum(2, 2), (7, 8), (3, 4), ((0, 0), (0, 0))),
]


@pytest.mark.parametrize(("layer", "sides_in", "sides_out", "pads"), PADDINGS)
def test_paddings_match_those_calculated_by_hand(layer: Any, sides_in: Any, sides_out: Any, pads: Any) -> None:
    node = build({"layer": layer, "dense": dense()}, (3, *sides_in), 10).nodes[0]
    assert isinstance(node.layer, (Convolution, MaxPool, AveragePool))
    assert node.output[1:] == sides_out
    size = node.layer.kernel if isinstance(node.layer, Convolution) else node.layer.size
    for (before, after), length, windows in zip(node.pads, sides_in, sides_out, strict=True):
        assert (length + before + after - size) // node.layer.stride + 1 == windows
    assert [before for before, _ in node.pads] == [before for before, _ in pads]
    assert node.pads == pads


@pytest.mark.parametrize("padding", ["valid", "same", 0, 1, 2])
@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_windows_match_the_definition(padding: int | str, rounding: str) -> None:
    for size in range(1 if padding in ("valid", "same") else int(padding) + 1, 5):
        for stride in range(1, 6):
            for length in range(5, 14):
                layer = MaxPool("pool", size, stride, padding, rounding)
                starts = numpy_network.window_starts(length, size, stride, padding, rounding)
                case = f"{length} cells, {layer}"
                assert layer.output((1, length, length)) == (1, len(starts), len(starts)), case
                before, after = layer.pads((1, length, length))[0]
                assert before == -min(starts[0], 0), case
                assert after >= starts[-1] + size - length, case
                assert all(start < length and start + size > 0 for start in starts), f"{case}: an empty window"


def test_numpy_network_has_the_gradients_of_its_loss() -> None:
    layers = numbered(
        convolution(4, 3, padding="same", stride=2),
        TANH,
        {**NORMALIZE, "radius": 1, "alpha": 0.5},
        maximum(2, 2, padding=1, rounding="ceil"),
        convolution(3, 2, connections=2, padding=1),
        RELU,
        average(3, 2, padding=1, rounding="ceil"),
        dense(5),
        TANH,
        dense(),
    )
    _assert_gradients(build(layers, (2, 9, 8), 3))


def test_residual_numpy_network_has_the_gradients_of_its_loss() -> None:
    unit = {
        "normal": NORMAL,
        "tanh": TANH,
        "conv": {**convolution(3, 3, padding=1), "biases": None},
        "sum": {"type": "add", "to": "input"},
    }
    layers = {
        "first": {**NORMAL, "scale": False},
        "conv": convolution(3, 3),
        "unit": {"type": "block", "times": 2, "layers": unit},
        "shortcut": {**convolution(3, 1), "input": "conv"},
        "sum": {"type": "add", "to": "unit_2_sum"},
        "pool": {"type": "global_average_pool"},
        "dense": dense(),
    }
    _assert_gradients(build(layers, (2, 6, 5), 3))


def _assert_gradients(network: Network) -> None:
    """Compare gradients with finite differences of the loss."""
    random = np.random.RandomState(0)
    images, labels = random.standard_normal((2, *network.nodes[0].input)), np.array([2, 0])
    weights = {name: value.astype(np.float64) for name, value in initialization.weights(network, 1).items()}
    masks = initialization.masks(network, 1)
    _, gradients = numpy_network.gradients(network, weights, images, labels, masks)
    for name in network.parameters:
        value = weights[name]
        for index in random.permutation(value.size)[:4]:
            losses = []
            for change in (1e-5, -1e-5):
                changed = value.copy()
                changed.flat[index] += change
                losses.append(numpy_network.gradients(network, {**weights, name: changed}, images, labels, masks)[0])
            assert gradients[name].flat[index] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-8), (
                name
            )


BLOCK = {
    "conv": {**convolution(2, 1), "biases": None},
    "relu": RELU,
    "sum": {"type": "add", "to": "conv"},
    "skip": {"type": "add", "to": "input"},
}


def test_block_is_expanded_to_its_layers_with_its_name_as_prefix() -> None:
    layers = {
        "tanh": TANH,
        "one": {"type": "block", "layers": BLOCK},
        "two": {"type": "block", "times": 2, "layers": BLOCK},
    }
    flat = expand_blocks({**layers, "dense": dense()})
    assert list(flat) == [
        "tanh",
        "one_conv",
        "one_relu",
        "one_sum",
        "one_skip",
        "two_1_conv",
        "two_1_relu",
        "two_1_sum",
        "two_1_skip",
        "two_2_conv",
        "two_2_relu",
        "two_2_sum",
        "two_2_skip",
        "dense",
    ]
    assert [flat[name]["to"] for name in ("one_sum", "one_skip", "two_1_sum", "two_1_skip", "two_2_skip")] == [
        "one_conv",
        "tanh",
        "two_1_conv",
        "one_skip",
        "two_1_skip",
    ]
    network = build({**layers, "dense": dense()}, (2, 4, 4), 10)
    assert [node.sources for node in network.nodes[:5]] == [(-1,), (0,), (1,), (2, 1), (3, 0)]
    assert list(expand_blocks({"tanh": TANH, "none": {"type": "block", "times": 0, "layers": BLOCK}})) == ["tanh"]


def invalid(message: str, *layers: Any, shape: tuple[int, ...] = (1, 8, 8)) -> Any:
    named = {f"layer{number}": layer for number, layer in enumerate(layers, 1)}
    return pytest.param(named, shape, message, id=message)


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        invalid("layer layer1: type=conv: expected one of convolution, max_pool,", {"type": "conv"}, dense()),
        invalid("layer layer1: type=None: expected one of convolution", {"units": 3}),
        invalid("layer layer1: type=['relu']: expected one of convolution", {"type": ["relu"]}),
        invalid("layer layer1=relu: expected {type: convolution|", "relu"),
        invalid("layer layer1: convolution has no kernels; it takes filters, kernel,", convolution(3, kernels=5)),
        invalid("layer layer1: relu has no units; it takes ", {"type": "relu", "units": 3}),
        invalid("layer layer1: max_pool needs stride", {"type": "max_pool", "size": 2}),
        invalid("layer layer1: dense needs biases, weights", {"type": "dense", "units": 3}),
        invalid("layer layer1: filters=0: expected a whole number of at least 1", convolution(0)),
        invalid("layer layer1: kernel=2.5: expected a whole number", {**convolution(3), "kernel": 2.5}),
        invalid("layer layer1: stride=True: expected a whole number", convolution(3, stride=True)),
        invalid("layer layer1: units=many: expected a whole number", dense("many")),
        invalid("layer layer1: padding=full: expected valid, same, or a whole number", convolution(3, padding="full")),
        invalid("layer layer1: padding=-1: expected valid, same, or a whole number", convolution(3, padding=-1)),
        invalid("layer layer1: padding=1.5: expected valid, same, or a whole number", maximum(2, 2, padding=1.5)),
        invalid("layer layer1: padding=2: must be smaller than size=2", maximum(2, 2, padding=2)),
        invalid("layer layer1: rounding=up: expected floor or ceil", maximum(2, 2, rounding="up")),
        invalid("layer layer1: keep=0: expected a probability above 0, at most 1", {"type": "dropout", "keep": 0}),
        invalid("layer layer1: keep=50%: expected a probability", {"type": "dropout", "keep": "50%"}),
        invalid("layer layer1: radius=0: expected a whole number", {**NORMALIZE, "radius": 0}),
        invalid("layer layer1: alpha=small: expected a number", {**NORMALIZE, "alpha": "small"}),
        invalid("layer layer1: weights=0.1: expected {distribution: constant|", {**dense(), "weights": 0.1}),
        invalid(
            "layer layer1: weights={'distribution': 'xavier'}: expected {distribution: constant|",
            {**dense(), "weights": {"distribution": "xavier"}},
        ),
        invalid(
            "layer layer1: weights={'distribution': 'normal', 'value': 1}: distribution normal takes stddev",
            {**dense(), "weights": {"distribution": "normal", "value": 1}},
        ),
        invalid(
            "layer layer1: weights.stddev=0: expected a positive number",
            {**dense(), "weights": {"distribution": "normal", "stddev": 0}},
        ),
        invalid(
            "layer layer1: biases.value=no: expected a number",
            {**dense(), "biases": {"distribution": "constant", "value": "no"}},
        ),
        invalid("layer layer1: connections=2, but the input has 1 maps", convolution(3, connections=2), dense()),
        invalid("layer layer2: a window of 5 does not fit an input of 4x4 (padding", maximum(2, 2), convolution(3)),
        invalid("layer layer2: a convolution cannot follow a dense layer", dense(), convolution(3)),
        invalid("layer layer2: a max_pool cannot follow a dense layer", dense(), maximum(2, 2)),
        invalid("layer layer1: gives (3,), but the data set has 10 classes", dense(3)),
        invalid("layer layer1: gives (1, 8, 8), but the data set has 10 classes", RELU),
        invalid("a network needs at least one layer"),
        invalid(
            "layer layer2: to=layer3: expected the name of a layer before it", TANH, {"type": "add", "to": "layer3"}
        ),
        invalid("layer layer2: to=2: expected the name of a layer before it", TANH, {"type": "add", "to": 2}),
        invalid("layer layer2: input=image: expected the name of a layer before it", TANH, {**TANH, "input": "image"}),
        invalid(
            "layer layer3: cannot add (1, 8, 8) (to=layer1) to (3, 8, 8)",
            TANH,
            convolution(3, 1),
            {"type": "add", "to": "layer1"},
        ),
        invalid("layer layer1: a block takes layers, and times if", {"type": "block", "layers": {}}),
        invalid(
            "layer layer1: a block takes layers, and times if", {"type": "block", "units": 3, "layers": {"a": TANH}}
        ),
        invalid(
            "layer layer1: times=many: expected a whole number", {"type": "block", "times": "many", "layers": BLOCK}
        ),
        invalid("layer layer1: a block at the start of a network has no input", {"type": "block", "layers": BLOCK}),
        invalid(
            "layer layer2_in: type=block: expected one of",
            TANH,
            {"type": "block", "layers": {"in": {"type": "block", "layers": BLOCK}}},
        ),
        invalid("layer layer2: a batch_normalization cannot follow a dense layer", dense(), NORMAL),
        invalid("layer layer1: momentum=1: expected a share above 0, below 1", {**NORMAL, "momentum": 1}),
        invalid("layer layer1: epsilon=0: expected a number above 0", {**NORMAL, "epsilon": 0}),
        invalid("layer layer1: scale=1: expected true or false", {**NORMAL, "scale": 1}),
    ],
)
def test_invalid_network_is_refused_in_one_line_with_its_layer(
    layers: Any, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(NetworkError) as caught:
        build(layers, shape, 10)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_padding_of_a_wrong_type_is_refused() -> None:
    with pytest.raises(NetworkError, match="padding=\\[1, 2\\]"):
        build({"pool": maximum(2, 2, padding=[1, 2]), "dense": dense()}, (1, 8, 8), 10)


def test_initializer_is_parsed_from_its_mapping() -> None:
    assert Initializer.parse("name", {"distribution": "normal", "stddev": 0.1}) == Initializer("normal", stddev=0.1)
    assert Initializer.parse("name", {"distribution": "constant", "value": -1}) == Initializer("constant", value=-1.0)


def test_layer_name_must_be_an_identifier() -> None:
    with pytest.raises(NetworkError, match=r"layer conv\.1: a name consists of letters, digits and _"):
        build({"conv.1": dense()}, (1, 8, 8), 4)


def test_numpy_network_implements_every_layer_type() -> None:
    assert numpy_network._LAYERS.keys() == set(TYPES.values())
