"""The native loop of a framework, alone in its process.

    python alone.py FRAMEWORK NETWORK FOLDER_OF_PREPARED_DATA STEPS THREADS TEST_BATCH DEVICE

Prints one JSON object: training and testing images/s, warm-up left out.
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
    steps, threads, test_batch = map(int, sys.argv[4:7])
    on_gpu = {} if sys.argv[7] == "cpu" else {"device": sys.argv[7]}  # few loops have a way there
    sys.path.append(str(Path(__file__).parent))  # isolated, Python does not look there
    loop = importlib.import_module(f"{framework}_loop")
    train, test, batch = loop.loop(network, folder, threads, test_batch, **on_gpu)
    train(WARM_UP_STEPS)
    training_s = train(steps)
    test(test_batch)  # one batch outside the clock, as the harness has it
    images = len(np.load(folder / "test_labels.npy"))
    print(json.dumps({"train": steps * batch / training_s, "test": images / test(images)}))


if __name__ == "__main__":
    main()
