"""Hand-written Caffe loops of default networks, as an expert would write them: the baseline of native_speed.py.

They do not use gtdl_mlflow. The number of threads is OpenBLAS's, set by OPENBLAS_NUM_THREADS before Caffe starts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import caffe
import numpy as np

Run = Callable[[int], None]


# Weights and images are the harness's: Caffe's max pooling and tanh branch on values, and with the weights of Caffe's
# own fillers the loop is a fifth faster on torch_cifar10.


def weighted(kind: str, name: str, bottom: str, own: str, deviation: float | None, bias: float) -> str:
    """Return a layer with weights; biases learn at twice the rate, as in Caffe's examples."""
    filler = 'type: "xavier"' if deviation is None else f'type: "gaussian" std: {deviation}'
    return f"""
        layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}"
          param {{ lr_mult: 1 }} param {{ lr_mult: 2 }}
          {"convolution" if kind == "Convolution" else "inner_product"}_param {{ {own}
            weight_filler {{ {filler} }} bias_filler {{ type: "constant" value: {bias} }} }} }}"""


def convolution(
    name: str, bottom: str, filters: int, pad: int = 0, deviation: float | None = None, bias: float = 0.0
) -> str:
    own = f"num_output: {filters} kernel_size: 5" + (f" pad: {pad}" if pad else "")
    return weighted("Convolution", name, bottom, own, deviation, bias)


def dense(name: str, bottom: str, units: int, deviation: float | None = None, bias: float = 0.0) -> str:
    return weighted("InnerProduct", name, bottom, f"num_output: {units}", deviation, bias)


def pool(name: str, bottom: str, size: int, stride: int, more: str = "") -> str:
    own = f"kernel_size: {size} stride: {stride} {more}"
    return f'layer {{ name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{name}" pooling_param {{ {own} }} }}'


def in_place(kind: str, blob: str, more: str = "") -> str:
    return f'layer {{ name: "{blob}_{kind}" type: "{kind}" bottom: "{blob}" top: "{blob}" {more} }}'


def tensorflow_mnist() -> tuple[list[str], str, int]:
    layers = [
        convolution("conv1", "data", 32, 2, 0.1, 0.1), in_place("ReLU", "conv1"), pool("pool1", "conv1", 2, 2),
        convolution("conv2", "pool1", 64, 2, 0.1, 0.1), in_place("ReLU", "conv2"), pool("pool2", "conv2", 2, 2),
        dense("ip1", "pool2", 1024, 0.1, 0.1), in_place("ReLU", "ip1"), in_place("Dropout", "ip1"),
        dense("ip2", "ip1", 10, 0.1, 0.1),
    ]  # fmt: skip
    return layers, 'type: "Adam" base_lr: 0.0001 momentum: 0.9 lr_policy: "fixed"', 50


def caffe_mnist() -> tuple[list[str], str, int]:
    layers = [
        convolution("conv1", "data", 20), pool("pool1", "conv1", 2, 2),
        convolution("conv2", "pool1", 50), pool("pool2", "conv2", 2, 2),
        dense("ip1", "pool2", 500), in_place("ReLU", "ip1"), dense("ip2", "ip1", 10),
    ]  # fmt: skip
    solver = "base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005"
    return layers, f'{solver} lr_policy: "inv" gamma: 0.0001 power: 0.75', 64


def torch_mnist() -> tuple[list[str], str, int]:
    layers = [
        convolution("conv1", "data", 32), in_place("TanH", "conv1"), pool("pool1", "conv1", 3, 3, "pad: 1"),
        convolution("conv2", "pool1", 64), in_place("TanH", "conv2"), pool("pool2", "conv2", 2, 2),
        dense("ip1", "pool2", 200), in_place("TanH", "ip1"), dense("ip2", "ip1", 10),
    ]  # fmt: skip
    return layers, 'base_lr: 0.05 lr_policy: "inv" gamma: 0.0000005 power: 1', 10


def torch_cifar10() -> tuple[list[str], str, int]:
    layers = [
        convolution("conv1", "data", 16), in_place("TanH", "conv1"), pool("pool1", "conv1", 2, 2),
        convolution("conv2", "pool1", 256), in_place("TanH", "conv2"), pool("pool2", "conv2", 2, 2),
        dense("ip1", "pool2", 128), in_place("TanH", "ip1"), dense("ip2", "ip1", 10),
    ]  # fmt: skip
    return layers, 'base_lr: 0.001 lr_policy: "inv" gamma: 0.0000005 power: 1', 1


def caffe_cifar10() -> tuple[list[str], str, int]:
    layers = [
        convolution("conv1", "data", 32, 2, 0.0001), pool("pool1", "conv1", 3, 2), in_place("ReLU", "pool1"),
        convolution("conv2", "pool1", 32, 2, 0.01), in_place("ReLU", "conv2"),
        pool("pool2", "conv2", 3, 2, "pool: AVE"),
        convolution("conv3", "pool2", 64, 2, 0.01), in_place("ReLU", "conv3"),
        pool("pool3", "conv3", 3, 2, "pool: AVE"),
        dense("ip1", "pool3", 64, 0.1), dense("ip2", "ip1", 10, 0.1),
    ]  # fmt: skip
    return layers, 'base_lr: 0.001 momentum: 0.9 weight_decay: 0.004 lr_policy: "fixed"', 100


def set_weights(learner: caffe.Solver, start: Any) -> None:
    """Set initial weights; those of unconnected maps are 0 and get no gradient."""
    blobs = (blob for both in learner.net.params.values() for blob in both)
    masked = []
    for name, blob in zip((name for name in start.files if not name.endswith(" mask")), blobs, strict=True):
        blob.data[...] = start[name].T if start[name].ndim == 2 else start[name]
        if f"{name} mask" in start.files:
            mask = np.broadcast_to(start[f"{name} mask"], blob.data.shape).astype(np.float32)
            blob.data[...] *= mask
            masked.append((blob.diff, mask))

    def mask_gradients() -> None:
        for gradient, mask in masked:
            np.multiply(gradient, mask, out=gradient)

    if masked:
        learner.add_callback(lambda: None, mask_gradients)


def loop(name: str, folder: Path, threads: int, test_batch: int) -> tuple[Run, Run, int]:
    """Return the training and testing of a network, and its batch size.

    The first does a number of further steps, the second classifies a number of images.
    """
    layers, rule, batch = globals()[name]()

    def images(part: str, size: int) -> np.ndarray:
        """Return the images of whole batches: Caffe's memory layer takes no others."""
        loaded = np.load(folder / f"{part}_preprocessed.npy")
        return np.ascontiguousarray(loaded[: len(loaded) // size * size].transpose(0, 3, 1, 2))

    x, x_test = images("train", batch), images("test", test_batch)
    y = np.load(folder / "train_labels.npy")[: len(x)].astype(np.float32)

    def source(phase: str, size: int) -> str:
        shape = f"batch_size: {size} channels: {x.shape[1]} height: {x.shape[2]} width: {x.shape[3]}"
        memory = f'type: "MemoryData" top: "data" top: "label" memory_data_param {{ {shape} }}'
        return f'layer {{ name: "data" {memory} include {{ phase: {phase} }} }}'

    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" include { phase: TRAIN } }'
    with tempfile.TemporaryDirectory() as temporary:
        net, solver = Path(temporary) / "net.prototxt", Path(temporary) / "solver.prototxt"
        net.write_text("\n".join([source("TRAIN", batch), source("TEST", test_batch), *layers, loss]))
        solver.write_text(f'net: "{net}" solver_mode: CPU random_seed: 0 {rule}')
        learner = caffe.get_solver(str(solver))
        tester = caffe.Net(str(net), caffe.TEST)
    tester.share_with(learner.net)
    set_weights(learner, np.load(folder / "start.npz"))
    learner.net.set_input_arrays(x, y)
    labels = np.zeros(len(x_test), np.float32)  # required, but unused

    def train(count: int, alive: Any = (x, y)) -> None:  # Caffe reads the arrays without a reference to them
        learner.step(count)  # the layer walks through the images by itself

    def test(count: int) -> None:
        tester.set_input_arrays(x_test[:count], labels[:count])
        np.concatenate([tester.forward()["ip2"].copy() for _ in range(count // test_batch)])

    return train, test, batch
