"""Training speed with images drawn anew for every batch, over that with images treated before: same network, same size.

    python benchmarks/input_pipeline.py [--framework torch] [--repeats 5] [--seconds 10]

Both are the harness, under TensorFlow's CIFAR-10 default, whose crops, flips, brightness and contrast a thread draws
while the framework computes. In turns, each in a fresh process, on random images. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

from native_speed import made_up, ours, show

from gtdl_mlflow import config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", default="torch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of training in a repeat, roughly")
    options = parser.parse_args()
    drawn = config.compose(
        [f"framework={options.framework}", "setting=tensorflow_cifar10", "training.evaluate_every_epochs=0"]
    )
    drawn.training.iterations = int(options.seconds * 1500 / drawn.training.batch_size)
    treated = copy.deepcopy(drawn)
    treated.training.preprocessing = {"central_crop": {"pixels": 24}, "standardize_image": {}}
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        data = made_up("tensorflow_cifar10", Path(folder))
        for repeat in range(options.repeats):
            turns = [drawn, treated] if repeat % 2 == 0 else [treated, drawn]
            speeds = {id(turn): ours(turn, data, turn.training.iterations)["train"] for turn in turns}
            pairs.append((speeds[id(drawn)], speeds[id(treated)]))
    show(f"{options.framework} drawn anew / treated before", pairs)


if __name__ == "__main__":
    main()
