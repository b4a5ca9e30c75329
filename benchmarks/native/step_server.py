"""Worker that trains on request, as a run does under its clock.

    python step_server.py JOB.json

Reads a number of steps per line and prints the seconds that they took.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The isolated interpreter has no path to these folders.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from paired import WARM_UP_STEPS, harness

from gtdl_mlflow.worker.assembly import load_adapter
from gtdl_mlflow.worker.job import Job


def main() -> None:
    job = Job.read(Path(sys.argv[1]))
    train, _ = harness(job, load_adapter(job.adapter))
    train(WARM_UP_STEPS)
    for line in sys.stdin:
        print(train(int(line)), flush=True)


if __name__ == "__main__":
    main()
