"""``python -m gtdl_mlflow.cli``: the command ``gtdl``."""

import sys

from . import main

sys.exit(main())
