"""``PYTHON -I contract.py REQUEST.json``: run the cases of ``test_frameworks.py`` in the interpreter of a framework.

The request lists cases; each is one network in the framework and the steps to do with it, in order. The arrays of the
cases are in ``arrays.npz`` beside it; the results go to ``results.npz`` and ``results.json`` in the same folder.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Import this one package as worker/__main__.py does, without the driver's site-packages.
root = Path(__file__).parents[2] / "gtdl_mlflow"
spec = importlib.util.spec_from_file_location(
    "gtdl_mlflow", root / "__init__.py", submodule_search_locations=[str(root)]
)
assert spec is not None
assert spec.loader is not None
sys.modules["gtdl_mlflow"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)

from gtdl_mlflow.worker import assembly, experiment  # noqa: E402
from gtdl_mlflow.worker.frameworks.base import Unsupported  # noqa: E402
from gtdl_mlflow.worker.inputs import aligned, batches, test_batches, to_layout  # noqa: E402
from gtdl_mlflow.worker.job import BatchOrder, Job  # noqa: E402
from gtdl_mlflow.worker.saved_model import SavedModel  # noqa: E402


class CountingIterator:
    """An iterator that counts the items taken from it."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.taken = 0

    def __iter__(self) -> CountingIterator:
        return self

    def __next__(self) -> Any:
        self.taken += 1
        return next(self._items)


def run(case: dict[str, Any], images: np.ndarray, labels: np.ndarray, folder: Path) -> list[Any]:
    """Return the result of each of the case's steps: an array, arrays by name, or plain data under ``data``."""
    values = case["job"]
    job = Job.parse(json.dumps(values))
    preprocessing, model, _ = assembly.build_model(job, assembly.load_adapter(job.adapter))
    inputs = model.to_native(aligned(to_layout(images.transpose(0, 2, 3, 1), model.layout)))
    labels = model.to_native(labels.astype(model.label_type))
    size = job.training.batch_size
    feed = CountingIterator(batches(inputs, labels, size, BatchOrder.sequential, 0))
    synchronizations: list[str] = []
    results: list[Any] = []
    for action, *arguments in case["steps"]:
        result: Any = {}
        if action == "weights":
            result = model.weights()
        elif action == "predict":
            result = model.predict(test_batches(inputs, arguments[0]))
        elif action == "train":
            before = feed.taken
            result = model.train(feed, arguments[0])
            assert feed.taken - before == len(arguments[0]), f"took {feed.taken - before} batches"
        elif action == "save":
            experiment.save(job, model, preprocessing, folder / arguments[0])
        elif action == "load":
            model.load(Path(arguments[0]))
        elif action == "checkpoint":
            incomplete = folder / "incomplete"
            incomplete.mkdir()
            model.checkpoint(incomplete)
            incomplete.replace(folder / arguments[0])  # as in a run: a checkpoint is renamed when it is complete
        elif action == "restore":
            checkpoint, step = Path(arguments[0]), arguments[1]
            model.restore(checkpoint, step)
            feed = CountingIterator(batches(inputs, labels, size, BatchOrder.sequential, 0, step))
        elif action == "pyfunc":
            pixels = np.rint(images.transpose(0, 2, 3, 1) * 255).astype("uint8")
            result = SavedModel(Path(arguments[0])).predict(pixels)
        elif action == "record synchronizations":
            model._synchronize = lambda: synchronizations.append("called")  # type: ignore[attr-defined]
        elif action == "synchronizations":
            result = {"data": {"count": len(synchronizations)}}
        elif action == "train on copies":
            copies: list[Any] = []
            model.train(copied_batches(images, size, model, copies), arguments[0])
            gc.collect()
            result = {"data": {"created": len(copies), "alive": sum(copy() is not None for copy in copies)}}
        elif action == "describe":
            result = {"data": model.describe()}
        else:
            raise ValueError(f"no such step: {action}")
        results.append(result)
    return results


def copied_batches(images: np.ndarray, size: int, model: Any, copies: list[Any]) -> Iterator[Any]:
    """Yield batches in memory of their own, like those of a shuffled set; add weak references to ``copies``."""
    for batch, labels in batches(images.copy(), np.zeros(len(images)), size, BatchOrder.sequential, 0):
        layout_copy = np.array(to_layout(np.array(batch.transpose(0, 2, 3, 1)), model.layout))
        arrays = layout_copy, np.array(labels, model.label_type)
        copies += map(weakref.ref, arrays)
        yield tuple(map(model.to_native, arrays))


def main(request: Path) -> None:
    folder = request.parent
    arrays: dict[str, np.ndarray] = {}
    plain: dict[str, Any] = {}
    with np.load(folder / "arrays.npz") as inputs:
        for case in json.loads(request.read_text()):
            name = case["name"]
            print(name, file=sys.stderr, flush=True)  # after a crash the last line names the case
            try:
                results = run(case, inputs[f"{name}/images"], inputs[f"{name}/labels"], folder)
            except Unsupported as error:
                plain[name] = {"refused": str(error)}
                continue
            plain[name] = {}
            for index, result in enumerate(results):
                if isinstance(result, np.ndarray):
                    arrays[f"{name}|{index}"] = result
                elif "data" in result:
                    plain[name][str(index)] = result["data"]
                else:
                    arrays.update({f"{name}|{index}|{key}": value for key, value in result.items()})
    np.savez(folder / "results.npz", **arrays)
    (folder / "results.json").write_text(json.dumps(plain))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
