"""Time the native loop of a framework, alone in its process.

    python separate.py FRAMEWORK NETWORK FOLDER_OF_PREPARED_DATA STEPS THREADS TEST_BATCH_SIZE DEVICE

Prints one JSON object: training and testing speed in images/s, without the warm-up.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np

WARM_UP_STEPS = 15


def main() -> None:
    framework, network, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    steps, threads, test_batch_size = map(int, sys.argv[4:7])
    device = {} if sys.argv[7] == "cpu" else {"device": sys.argv[7]}  # few loops support a GPU
    sys.path.append(str(Path(__file__).parent))  # the isolated interpreter has no path to this folder
    loop = importlib.import_module(f"{framework}_loop")
    train, test, batch_size = loop.loop(network, folder, threads, test_batch_size, **device)
    train(WARM_UP_STEPS)
    training_s = train(steps)
    test(test_batch_size)  # one batch outside the clock, as in the harness
    images = len(np.load(folder / "test_labels.npy"))
    print(json.dumps({"train": steps * batch_size / training_s, "test": images / test(images)}))


if __name__ == "__main__":
    main()
