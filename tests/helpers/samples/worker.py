"""A stand-in for the worker, without any framework: the job's option ``behaviour`` selects what it does."""

import json
import os
import signal
import subprocess
import sys
import time

job = json.load(open(sys.argv[1]))  # noqa: SIM115, PTH123
events = os.fdopen(int(sys.argv[2]), "w")
behaviour = job["options"]["behaviour"]


def send(text: str) -> None:
    events.write(text)
    events.flush()


send('{"event": "metrics", "values": {"setup/import_s": 1.5}, "step": 0, "time": 1.0}\n')
print("next:", behaviour, flush=True)
if behaviour == "crash":
    raise RuntimeError("error in the framework")
if behaviour == "segfault":
    os.kill(os.getpid(), signal.SIGSEGV)
if behaviour == "be killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "exit early":
    sys.exit(0)
if behaviour == "send text":
    send("Epoch 1/10 loss 0.5\n")
    time.sleep(60)
if behaviour == "stop within a line":
    send('{"event": "metr')
    sys.exit(3)
if behaviour == "hang with a child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    send(json.dumps({"event": "metadata", "values": {"child": child.pid}}) + "\n")
    time.sleep(60)
if behaviour == "send its environment":
    send(json.dumps({"event": "metadata", "values": dict(os.environ)}) + "\n")
if behaviour == "print to descriptor 1":
    os.write(1, b"printed from C\n")
send('{"event": "finished", "cpu_s": 0.5}\n')
