"""A worker that trains when it is told to, as a run does under its clock.

    python on_request.py JOB.json

Reads numbers of steps, a line each, and answers with the seconds that they took.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2])]  # isolated, Python does not look there

from in_turns import WARM_UP_STEPS, ours

from gtdl_mlflow.worker.assembly import load_adapter
from gtdl_mlflow.worker.job import Job


def main() -> None:
    job = Job.read(Path(sys.argv[1]))
    train, _ = ours(job, load_adapter(job.adapter))
    train(WARM_UP_STEPS)
    for line in sys.stdin:
        print(train(int(line)), flush=True)


if __name__ == "__main__":
    main()
