"""Kernels compile for a Hopper GPU and fit its shared memory: what the interpreter does not see, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from weightspace.graphs.message_passing.kernels.available import is_installed

ROOT = Path(__file__).resolve().parents[4]
SHARED_MEMORY = 227 * 1024
"""Of one program on compute capability 9.0."""


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="needs triton")
def test_every_kernel_compiles_and_fits(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.graphs.message_passing.kernels.compile_for_device"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert {k["kernel"].split(".")[0] for k in kernels} == {
        "segment_reduce_triton",
        "segment_softmax_triton",
        "attention_pass_triton",
        "message_backward_triton",
        "message_forward_triton",
        "operator_triton",
    }
    too_large = [k for k in kernels if k["shared"] > SHARED_MEMORY]
    assert not too_large
