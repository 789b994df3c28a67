"""Two real processes, one of which cannot read its part of the newest checkpoint: both go on from the one before it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TIMEOUT = 240
PROCESS = """
import logging, sys
import jax, numpy as np
from pathlib import Path
from jax.sharding import NamedSharding, PartitionSpec as P
from ar_omni_jax.checkpoint import Checkpoints, Description

index, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
logging.basicConfig(level=logging.WARNING, format="%(message)s")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
mesh = jax.make_mesh((2,), ("x",))
split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
shapes = {"w": jax.ShapeDtypeStruct((2, 50_000), np.float32, sharding=split)}
shapes["step"] = jax.ShapeDtypeStruct((), np.int32, sharding=whole)


def state(step):
    values = {"w": np.random.default_rng(step).random((2, 50_000), np.float32), "step": np.int32(step)}
    place = lambda name, v: jax.make_array_from_callback(v.shape, shapes[name].sharding, lambda index: v[index])
    return {name: place(name, value) for name, value in values.items()}


def save(checkpoints, step):
    checkpoints.save(state(step), Description(step, step, {}, {}, ""))
    checkpoints.wait()


checkpoints = Checkpoints(folder)
for step in (1, 2):
    save(checkpoints, step)
checkpoints.close()
if index == 1:  # nobody else reads what the second process has written
    parts = [p for p in (folder / "2" / "state" / "ocdbt.process_1").rglob("*") if p.is_file()]
    for part in parts:
        if part.stat().st_size > 100_000:
            part.write_bytes(part.read_bytes()[:1000])
            print("damaged", flush=True)
checkpoints = Checkpoints(folder)
restored, description = checkpoints.restore_latest(shapes, lambda description: None)
mine = restored["w"].addressable_shards[0].data
np.testing.assert_array_equal(mine[0], np.random.default_rng(1).random((2, 50_000), np.float32)[index])
save(checkpoints, 3)  # and all agree on what comes next
checkpoints.close()
print("restored", description.step, sorted(p.name for p in folder.iterdir()), flush=True)
"""


def test_damage_that_one_process_meets_sets_the_checkpoint_aside_for_all(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": flags}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [[sys.executable, "-c", PROCESS, str(index), port, str(tmp_path / "checkpoints")] for index in range(2)]
    processes = [subprocess.Popen(command, env=environment, **pipes) for command in words]
    try:
        told = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    (first, first_errors), (second, second_errors) = told
    assert "damaged" in second
    assert "restored 1 ['1', '3', 'corrupt-2-0']" in first and "restored 1 ['1', '3', 'corrupt-2-0']" in second
    assert "process 1 of 2 cannot read it. It is set aside as corrupt-2-0" in first_errors
    assert "the arrays are unreadable" in second_errors
