"""The compiled loop of the 7B shape for an H200, read without the hardware."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compilers import needs_cuda, with_compilers

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
@needs_cuda
@pytest.mark.parametrize("weights,rows", [("bfloat16", 1), ("int8", 1), ("int8", 3)])
def test_the_loop_for_an_h200_writes_the_cache_in_place_and_no_weights(weights, rows):
    command = [sys.executable, "-m", "tests.decoding.h200_loop", weights, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=with_compilers())
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["aliased_bytes"] >= found["cache_bytes"]
    assert found["temporary_bytes"] < 16 * 2**20  # a matrix of 4096 x 4096 has 32 MiB, a layer's keys 16 MiB a row
    shapes = {(opcode, math.prod(shape)) for opcode, _, shape in found["written"]}
    assert shapes <= {(opcode, math.prod(found["cache_shape"])) for opcode in ("dynamic-update-slice", "scatter")}
