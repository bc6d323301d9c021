"""Triton's kernels without a GPU: in its interpreter, which must be chosen before Triton is imported, and compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
triton = pytest.importorskip("triton")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    # 3.2 compiles these sources, too, but its interpreter does not run with the NumPy of today
    pytest.skip("Triton's interpreter is too old", allow_module_level=True)


def run(*files: str, **environment: str) -> None:
    """These files' tests in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / f) for f in files)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=HERE.parent, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_in_the_interpreter() -> None:
    files = "triton_kernels.py", "triton_rules.py", "triton_capture.py"
    run(*files, TRITON_INTERPRET="1", HF_OPTIM_KERNELS="triton")


def test_compiled_for_gpus(tmp_path: Path) -> None:
    run("triton_compiled.py", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
