"""``PYTHON -I contract.py REQUEST.json``: do what ``test_frameworks.py`` asks, in the interpreter of a framework.

The request names cases; each is one network in the framework and what is to be done with it, in order. Its arrays lie
beside it in ``arrays.npz``; the answers go to ``answers.npz`` and ``answers.json`` in the same folder.
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

# As worker/__main__.py does it: this one package, without the driver's site-packages.
root = Path(__file__).parents[2] / "gtdl_mlflow"
spec = importlib.util.spec_from_file_location(
    "gtdl_mlflow", root / "__init__.py", submodule_search_locations=[str(root)]
)
assert spec is not None
assert spec.loader is not None
sys.modules["gtdl_mlflow"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)

from gtdl_mlflow.worker import assembly, experiment  # noqa: E402
from gtdl_mlflow.worker.inputs import aligned, batches, test_batches, to_layout  # noqa: E402
from gtdl_mlflow.worker.job import BatchOrder, Job, training_from_json  # noqa: E402
from gtdl_mlflow.worker.saved_model import SavedModel  # noqa: E402


class Counted:
    """An iterator that counts what was taken from it."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.taken = 0

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> Any:
        self.taken += 1
        return next(self._items)


def answer(case: dict[str, Any], images: np.ndarray, labels: np.ndarray, folder: Path) -> list[Any]:
    """What each of the case's steps gave: arrays, or plain data."""
    values = case["job"]
    job = Job(**{**values, "training": training_from_json(values["training"])})
    treatment, model, _ = assembly.build_model(job, assembly.load_adapter(job.adapter))
    treated = model.to_native(aligned(to_layout(images.transpose(0, 2, 3, 1), model.layout)))
    labels = model.to_native(labels.astype(model.label_type))
    feed = Counted(batches(treated, labels, job.training.batch_size, BatchOrder.sequential, 0))
    given: list[Any] = []
    for action, *arguments in case["steps"]:
        if action == "weights":
            given.append(model.weights())
        elif action == "predict":
            given.append(model.predict(test_batches(treated, arguments[0])))
        elif action == "train":
            before = feed.taken
            losses = model.train(feed, arguments[0])
            assert feed.taken - before == len(arguments[0]), f"took {feed.taken - before} batches"
            given.append(losses)
        elif action == "save":
            experiment.save(job, model, treatment, folder / arguments[0])
            given.append({})
        elif action == "load":
            model.load(Path(arguments[0]))
            given.append({})
        elif action == "checkpoint":
            place = folder / "being written"
            place.mkdir()
            model.checkpoint(place)
            place.replace(folder / arguments[0])  # a checkpoint gets its name when it is complete
            given.append({})
        elif action == "restore":
            place, taken = Path(arguments[0]), arguments[1]
            model.restore(place, taken)
            size = job.training.batch_size
            feed = Counted(batches(treated, labels, size, BatchOrder.sequential, 0, taken))
            given.append({})
        elif action == "pyfunc":
            given.append(
                SavedModel(Path(arguments[0])).predict(np.rint(images.transpose(0, 2, 3, 1) * 255).astype("uint8"))
            )
        elif action == "watch":
            waits: list[str] = []
            model._wait = lambda waits=waits: waits.append("waited")  # type: ignore[attr-defined]
            given.append({})
        elif action == "waits":
            given.append({"facts": {"count": len(waits)}})
        elif action == "train on copies":
            size, copies = job.training.batch_size, []

            def copied(copies: list[Any] = copies, size: int = size) -> Iterator[Any]:
                """As batches of a shuffled set are: of memory of their own."""
                for arrays in batches(images.copy(), np.zeros(len(images)), size, BatchOrder.sequential, 0):
                    both = [np.array(arrays[0].transpose(0, 2, 3, 1)), np.array(arrays[1], model.label_type)]
                    both[0] = np.array(to_layout(both[0], model.layout))
                    copies += map(weakref.ref, both)
                    yield tuple(map(model.to_native, both))

            model.train(copied(), arguments[0])
            gc.collect()
            given.append({"facts": {"made": len(copies), "kept": sum(copy() is not None for copy in copies)}})
        elif action == "describe":
            given.append({"facts": model.describe()})
        else:
            raise ValueError(f"no such step: {action}")
    return given


def main(request: Path) -> None:
    folder = request.parent
    arrays: dict[str, np.ndarray] = {}
    plain: dict[str, Any] = {}
    with np.load(folder / "arrays.npz") as given:
        for case in json.loads(request.read_text()):
            name = case["name"]
            print(name, file=sys.stderr, flush=True)  # the last one says where a crash was
            try:
                steps = answer(case, given[f"{case['data']}/images"], given[f"{case['data']}/labels"], folder)
            except NotImplementedError as error:
                plain[name] = {"refused": str(error)}
                continue
            plain[name] = {}
            for index, result in enumerate(steps):
                if isinstance(result, np.ndarray):
                    arrays[f"{name}|{index}"] = result
                elif result and "facts" not in result:
                    arrays.update({f"{name}|{index}|{key}": value for key, value in result.items()})
                else:
                    plain[name][str(index)] = result
    np.savez(folder / "answers.npz", **arrays)
    (folder / "answers.json").write_text(json.dumps(plain))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
