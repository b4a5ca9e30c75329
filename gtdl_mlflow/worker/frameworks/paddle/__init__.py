"""PaddlePaddle."""

from contextlib import suppress
from pathlib import Path

# When it is imported, Paddle creates .cache/paddle in the home directory, or in the folder of temporary files if there
# is no home directory. conf/framework/paddle.yaml sets one in the environment, which the first run creates.
with suppress(OSError):
    Path.home().mkdir(parents=True, exist_ok=True)
