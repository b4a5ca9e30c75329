"""``PYTHON -I flops.py JOB.json``: count the operations per image by PyTorch's own counter.

Prints one line of JSON: ``test`` for a forward pass and ``train`` for a training step.
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np

runpy.run_path(str(Path(__file__).parents[1] / "contract.py"))  # makes the package importable here

from torch.utils.flop_counter import FlopCounterMode  # type: ignore[import-not-found] # noqa: E402

from gtdl_mlflow.worker import assembly  # noqa: E402
from gtdl_mlflow.worker.job import Job  # noqa: E402

job = Job.read(Path(sys.argv[1]))
_, model, network = assembly.build_model(job, assembly.load_adapter(job.adapter))
channels, height, width = network.nodes[0].input
count = job.training.batch_size
shape = (height, width, channels) if model.layout == "NHWC" else (channels, height, width)
images, labels = model.to_native(np.ones((count, *shape), np.float32)), model.to_native(np.zeros(count, np.int64))
with FlopCounterMode(display=False) as testing:
    model.predict([images])
with FlopCounterMode(display=False) as training:
    model.train([(images, labels)], [0.01])
print(json.dumps({"test": testing.get_total_flops() / count, "train": training.get_total_flops() / count}))
