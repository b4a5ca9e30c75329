"""A stand-in for the worker, without any framework: the job's option ``behaviour`` selects what it does."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from gtdl_mlflow.worker.__main__ import continue_in_child

continue_in_child(int(sys.argv[3]), int(sys.argv[2]))
job = json.loads(sys.stdin.readline())
events = os.fdopen(int(sys.argv[2]), "w")
behaviour = job["options"]["behaviour"]


def send(text: str) -> None:
    events.write(text)
    events.flush()


send('{"event": "metrics", "values": {"setup/import_s": 1.5}, "step": 0, "time": 1.0}\n')
print("next:", behaviour, flush=True)
if behaviour == "segfault":
    os.kill(os.getpid(), signal.SIGSEGV)
if behaviour.startswith("use much memory"):
    group = behaviour.partition(": ")[2]  # a control group with a limit
    with open(f"{group}/cgroup.procs", "w") as processes:  # noqa: PTH123
        processes.write(str(os.getpid()))
    memory = b"x" * 2**28
if behaviour == "exit early":
    sys.exit(0)
if behaviour == "send text":
    send("Epoch 1/10 loss 0.5\n")
    time.sleep(60)
if behaviour == "send deep nesting":
    send("[" * 200_000 + "\n")
    time.sleep(60)
if behaviour == "stop within a line":
    send('{"event": "metr')
    sys.exit(4)
if behaviour == "refuse":
    print("framework=sample cannot run layer conv1")
    sys.exit(3)
if behaviour == "hang with a child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    send(json.dumps({"event": "metadata", "values": {"child": child.pid}}) + "\n")
    time.sleep(60)
if behaviour.startswith("leave a temporary file"):
    _, name = tempfile.mkstemp()
    send(json.dumps({"event": "metadata", "values": {"file": name}}) + "\n")
if behaviour.startswith("leave processes"):
    # In a session of their own; with another environment; and as a child of a process that has ended.
    daemon = "import subprocess, sys; print(subprocess.Popen(['sleep', '300'], start_new_session=True, stdout=-3).pid)"
    left = [
        subprocess.Popen(["sleep", "300"], start_new_session=True).pid,
        subprocess.Popen(["sleep", "300"], start_new_session=True, env={}).pid,
        int(subprocess.run([sys.executable, "-c", daemon], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout),
    ]
    send(json.dumps({"event": "metadata", "values": {"left": left, "worker": os.getpid()}}) + "\n")
if behaviour.endswith("crash"):
    raise RuntimeError("error in the framework")
if behaviour.endswith("be killed"):
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour.endswith("and hang"):
    time.sleep(60)
if behaviour == "send its environment":
    send(json.dumps({"event": "metadata", "values": dict(os.environ)}) + "\n")
if behaviour == "print to descriptor 1":
    os.write(1, b"printed from C\n")
if behaviour == "print much":
    for number in range(50_000):
        os.write(1, b"%d " % number + b"x" * 100 + b"\n")
    os.write(1, b"y" * 3_000_000)
    sys.exit(4)
if behaviour == "print control characters":
    os.write(2, b"before\x00after\x1b[31m\ttab\xff\x9b\r\n" + b"z" * 100_000)
    sys.exit(4)
if behaviour == "send an endless line":
    while True:
        send("[" * 100_000)
if behaviour == "send nothing more":
    send('{"event": "finished", "cpu_s": 0.5}\n')
    sys.exit(0)
headline = {"training_time_s": 1, "testing_time_s": 1, "accuracy_percent": 1}
send(json.dumps({"event": "metrics", "values": headline, "step": 0, "time": 1.0}) + "\n")
send('{"event": "finished", "cpu_s": 0.5}\n')
if behaviour == "send more":
    send('{"event": "phase", "name": "more"}\n')
if behaviour == "finish twice":
    send('{"event": "finished", "cpu_s": 0.5}\n')
