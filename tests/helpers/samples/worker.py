"""Stands in for the worker: behaves as the job's option ``behaviour`` says, without any framework."""

import json
import os
import signal
import subprocess
import sys
import time

job = json.load(open(sys.argv[1]))  # noqa: SIM115, PTH123
events = os.fdopen(int(sys.argv[2]), "w")
behaviour = job["options"]["behaviour"]


def say(text: str) -> None:
    events.write(text)
    events.flush()


say('{"event": "metrics", "values": {"setup/import_s": 1.5}, "step": 0, "time": 1.0}\n')
print("about to", behaviour, flush=True)
if behaviour == "crash":
    raise RuntimeError("the framework fell over")
if behaviour == "segfault":
    os.kill(os.getpid(), signal.SIGSEGV)
if behaviour == "be killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "leave quietly":
    sys.exit(0)
if behaviour == "talk nonsense":
    say("Epoch 1/10 loss 0.5\n")
    time.sleep(60)
if behaviour == "stop mid-word":
    say('{"event": "metr')
    sys.exit(3)
if behaviour == "hang with a child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    say(json.dumps({"event": "described", "facts": {"child": child.pid}}) + "\n")
    time.sleep(60)
if behaviour == "show its environment":
    say(json.dumps({"event": "described", "facts": dict(os.environ)}) + "\n")
if behaviour == "print to descriptor 1":
    os.write(1, b"said from C\n")
say('{"event": "finished"}\n')
