"""Theano adapter, for the fork Theano-PyMC.

Importing this package checks the compiler, sets Theano's flags and imports Theano, which reads its flags only once.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any


def _require_compiler() -> None:
    """Raise RuntimeError without g++ or Python.h: Theano would silently use Python code that is many times slower."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [*([] if shutil.which("g++") else ["g++ on the PATH"]), *([] if header.exists() else [str(header)])]
    if missing:
        raise RuntimeError(
            f"framework=theano compiles C++ while it runs, but found no {' and no '.join(missing)};"
            " on Debian: apt-get install g++ python3-dev"
        )


_require_compiler()
# The mkl wheel installs its library outside the linker's search path.
_mkl = next((Path(sys.prefix) / "lib").glob("libmkl_rt.so.*"))
# Theano searches for a BLAS in NumPy's build configuration, which NumPy 1.22 and later no longer publish. Therefore the
# flags name a library. The linker finds it in LIBRARY_PATH, and the compiled modules use the library loaded here.
BLAS = ctypes.CDLL(str(_mkl), ctypes.RTLD_GLOBAL)
OPENMP = ctypes.CDLL("libgomp.so.1")
"""GCC's OpenMP library, which Theano's C++ code uses."""
os.environ["LIBRARY_PATH"] = str(_mkl.parent)
os.environ["THEANO_FLAGS"] = ",".join(
    [
        *filter(None, [os.environ.get("THEANO_FLAGS")]),  # the flags of the mode, in conf/framework/theano.yaml
        "floatX=float32",
        f'base_compiledir="{os.environ.get("GTDL_COMPILE_CACHE", Path(sys.prefix) / "compiled")}"',
        f"blas__ldflags=-l:{_mkl.name}",
    ]
)

from theano import config  # noqa: E402
from theano.tensor.elemwise import Elemwise  # noqa: E402

_original_c_all = Elemwise._c_all


def _fixed_c_all(self: Any, *arguments: Any) -> tuple[str, ...]:
    """Return the C++ code of an elementwise operation with the minimum size filled in.

    Theano-PyMC 1.1.2 lacks the f of an f-string (tensor/elemwise.py, line 1181): without this fix no elementwise
    operation compiles under OpenMP.
    """
    minimum = str(config.openmp_elemwise_minsize)
    code = _original_c_all(self, *arguments)
    return tuple(part.replace("{int(config.openmp_elemwise_minsize)}", minimum) for part in code)


Elemwise._c_all = _fixed_c_all
