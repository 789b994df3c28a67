"""Checkpoints: any mesh to any mesh, retention, damage, refusals, and weights for inference."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ar_omni_jax import checkpoint, checkpoint_format
from ar_omni_jax.checkpoint import CheckpointError, Checkpoints, Description
from ar_omni_jax.config import base_config, model_config
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.vocabulary import compact_vocabulary

REPOSITORY = Path(__file__).parents[1]
VOCABULARY = compact_vocabulary(20, 8, 8, (2, 2))


def make_state(seed=0, width=16):
    weight = jax.random.normal(jax.random.key(seed), (64, width))
    params = {"model": {"w": weight, "b": jnp.ones(3, jnp.bfloat16)}, "projection": jnp.arange(4.0)}
    return {"step": jnp.int32(seed), "params": params, "opt_state": optax.adam(1e-3).init(params)}


def abstract(state):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state)


def describe(step, **fields):
    return Description(step, step, {"seed": 1}, VOCABULARY.to_dict(), VOCABULARY.fingerprint, **fields)


def accept(description):
    del description


def save_steps(directory, steps, **options):
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(make_state(step), describe(step))
    checkpoints.close()


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_restores_the_state_and_its_description(tmp_path):
    state = make_state(7)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, describe(7, tokenizers={"text": "abc"}, progress={"loss": 0.1 + 0.2}))
    checkpoints.close()
    restored, description = Checkpoints(tmp_path).restore_latest(abstract(state), accept)
    assert_same(restored, state)
    assert restored["params"]["model"]["b"].dtype == jnp.bfloat16
    assert type(restored["opt_state"][0]) is type(state["opt_state"][0])
    assert (description.step, description.loader_step) == (7, 7)
    assert description.progress == {"loss": 0.1 + 0.2}
    assert description.tokenizers == {"text": "abc"}


def test_nothing_saved_means_none(tmp_path):
    assert Checkpoints(tmp_path).restore_latest(abstract(make_state()), accept) is None


def test_keeps_the_newest_and_every_mth(tmp_path):
    save_steps(tmp_path, range(1, 8), keep=2, keep_every=3)
    assert checkpoint.steps_in(tmp_path) == [3, 6, 7]


def test_saving_does_not_see_later_changes_of_donated_buffers(tmp_path):
    state = jax.device_put(np.zeros((512, 512), np.float32))
    bump = jax.jit(lambda x: x + 1, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=10)
    for step in range(5):
        checkpoints.save({"x": state}, describe(step))
        for _ in range(10):
            state = bump(state)
    checkpoints.close()
    for step in range(5):
        leaves, _ = checkpoint.load_arrays(tmp_path, "", step)
        np.testing.assert_array_equal(leaves["x"], np.full((512, 512), 10.0 * step))


def test_the_next_step_takes_the_memory_of_a_state_under_way_to_the_disk(tmp_path):
    """Where a buffer is still being read JAX copies it for a step that was given it: a stall that no clock shows."""
    state = jax.device_put(np.ones((2048, 2048), np.float32))
    bump = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = jax.block_until_ready(bump(state))
    checkpoints = Checkpoints(tmp_path)
    for step in range(3):
        place = state.unsafe_buffer_pointer()
        checkpoints.save({"x": state}, describe(step))
        state = bump(state)
        assert state.unsafe_buffer_pointer() == place
    checkpoints.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int32", "uint8", "float16"])
def test_checksums_by_the_host_are_those_by_the_device(dtype):
    """Whatever the sharding: whole, split, replicated, or both."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("a", "b"))
    splits = ((), ("a",), ("b",), ("a", "b"), (("a", "b"),), (None, "a"))
    specs = [jax.sharding.PartitionSpec(*names) for names in splits]
    values = np.random.default_rng(1).integers(-(2**14), 2**14, (16, 24)).astype(dtype)
    leaves = {str(spec): jax.device_put(values, jax.sharding.NamedSharding(mesh, spec)) for spec in specs}
    leaves |= {"one": jax.device_put(values), "scalar": jnp.asarray(values[0, 0]), "none": jnp.zeros((0, 3), dtype)}
    found = checkpoint_format.checksums(leaves)
    assert found == {name: int(value) for name, value in checkpoint_format._checksums(leaves).items()}
    assert len({found[str(spec)] for spec in specs}) == 1 and found["none"] == 0


def damage_array_data(path):
    """Flips one byte in the middle of the largest file of array data that restoring reads."""
    victim = max((path / "state" / "d").iterdir(), key=lambda f: f.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(data)


DAMAGES = {
    "flipped byte": damage_array_data,
    "truncated metadata": lambda path: os.truncate(path / "state" / "_METADATA", 10),
    "missing manifest": lambda path: (path / "state" / "manifest.ocdbt").unlink(),
    "half description": lambda path: os.truncate(path / "description" / "data.json", 20),
    "no description": lambda path: (path / "description" / "data.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_falls_back_from_a_damaged_checkpoint_and_says_so(tmp_path, caplog, damage):
    save_steps(tmp_path, [1, 2, 3])
    DAMAGES[damage](tmp_path / "3")
    checkpoints = Checkpoints(tmp_path)
    restored, description = checkpoints.restore_latest(abstract(make_state()), accept)
    assert description.step == 2
    assert_same(restored, make_state(2))
    assert str(tmp_path / "3") in caplog.text
    assert (tmp_path / "corrupt-3-0").is_dir()
    checkpoints.save(make_state(3), describe(3))  # the step can be saved again
    checkpoints.close()
    assert checkpoint.steps_in(tmp_path) == [1, 2, 3]


def test_silent_changes_are_found_by_the_checksums(tmp_path):
    save_steps(tmp_path, [1])
    file = tmp_path / "1" / "description" / "data.json"
    description = json.loads(file.read_text())
    description["checksums"]["params.model.w"] ^= 1
    file.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        Checkpoints(tmp_path).restore_latest(abstract(make_state()), accept)
    # A supervisor that starts the command again must not begin anew over what is left.
    with pytest.raises(CheckpointError, match="remove corrupt-"):
        Checkpoints(tmp_path).restore_latest(abstract(make_state()), accept)
    (tmp_path / "corrupt-1-0").rename(tmp_path / "away")
    assert Checkpoints(tmp_path).restore_latest(abstract(make_state()), accept) is None


def test_leftovers_of_a_killed_save_do_not_count(tmp_path):
    save_steps(tmp_path, [1])
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir()
    _, description = Checkpoints(tmp_path).restore_latest(abstract(make_state()), accept)
    assert description.step == 1


def test_another_shape_is_refused_with_both_named(tmp_path):
    save_steps(tmp_path, [1, 2])
    with pytest.raises(CheckpointError, match=r"params\.model\.w: float32\[64, 16\].*float32\[64, 8\]"):
        Checkpoints(tmp_path).restore_latest(abstract(make_state(width=8)), accept)
    assert checkpoint.steps_in(tmp_path) == [1, 2]  # refused, not damaged: nothing is set aside


def test_a_refusal_by_the_caller_stops_the_search(tmp_path):
    save_steps(tmp_path, [1, 2])

    def refuse(description):
        raise CheckpointError(f"no to step {description.step}")

    with pytest.raises(CheckpointError, match="no to step 2"):
        Checkpoints(tmp_path).restore_latest(abstract(make_state()), refuse)


def test_another_schema_version_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make_state(), dataclasses.replace(describe(1), schema_version=99))
    checkpoints.close()
    with pytest.raises(CheckpointError, match="schema version 99"):
        Checkpoints(tmp_path).restore_latest(abstract(make_state()), accept)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/run"):
        Checkpoints(tmp_path / "file" / "run")


MESHES = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from ar_omni_jax.checkpoint import Checkpoints, Description
auto = (jax.sharding.AxisType.Auto,) * 3
def state(shape):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=auto, devices=jax.devices()[:np.prod(shape)])
    specs = {"w": P("fsdp", "tensor"), "v": P(("data", "fsdp", "tensor")), "b": P()}
    values = {"w": np.arange(64.0 * 16).reshape(64, 16), "v": np.arange(32.0), "b": np.float32(3)}
    return jax.tree.map(lambda v, s: jax.device_put(v.astype("float32"), NamedSharding(mesh, s)), values, specs)
assert len(jax.devices()) == 8
saved = state((2, 2, 2))
c = Checkpoints(sys.argv[1]); c.save(saved, Description(5, 5, {}, {}, "")); c.close()
for shape in ((1, 1, 1), (8, 1, 1), (1, 8, 1)):
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(shape))
    restored, _ = Checkpoints(sys.argv[1]).restore_latest(target, lambda d: None)
    for name in saved:
        assert restored[name].sharding == target[name].sharding, (shape, name)
        assert (np.asarray(restored[name]) == np.asarray(saved[name])).all(), (shape, name)
print("restored on every mesh")
"""


def test_saves_on_eight_devices_and_restores_on_any_mesh(tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
    }
    run = subprocess.run(
        [sys.executable, "-c", MESHES, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "restored on every mesh" in run.stdout, run.stderr


def test_loads_a_model_for_inference(tmp_path):
    config = base_config()
    config.model.update(num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32, dtype="float32")
    model = Transformer(model_config(config.model, VOCABULARY.size), rngs=nnx.Rngs(3))
    state = {"params": {"model": nnx.state(model), "projection": jnp.zeros(2)}, "opt_state": jnp.zeros(5)}
    description = dataclasses.replace(describe(4), config=config.to_dict())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state, description)
    checkpoints.close()
    trained = checkpoint.load_for_inference(tmp_path)
    assert trained.model_config == model.config
    assert trained.vocabulary == VOCABULARY
    assert (trained.step, trained.config["model"]["d_ff"]) == (4, 32)
    loaded = nnx.merge(nnx.graphdef(model), trained.params)
    inputs = jnp.arange(6)[None] % VOCABULARY.size, jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32)
    np.testing.assert_array_equal(loaded(*inputs), model(*inputs))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9; it has \[4\]"):
        checkpoint.load_for_inference(tmp_path, step=9)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.load_for_inference(tmp_path / "elsewhere")


def test_a_machine_without_memory_does_not_set_a_good_checkpoint_aside(tmp_path, monkeypatch):
    save_steps(tmp_path, [1])

    def too_large(*_, **__):
        raise MemoryError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", too_large)
    with pytest.raises(MemoryError):
        Checkpoints(tmp_path).restore_latest(abstract(make_state()), accept)
    assert checkpoint.steps_in(tmp_path) == [1]
