"""PaddlePaddle adapter; importing this package creates the home directory if it does not exist."""

from contextlib import suppress
from pathlib import Path

# On import, Paddle creates .cache/paddle in the home directory, or in the directory of temporary files if the home
# directory does not exist. conf/framework/paddle.yaml sets a home directory, which the first run creates here.
with suppress(OSError):
    Path.home().mkdir(parents=True, exist_ok=True)
