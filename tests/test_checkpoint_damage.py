"""Every file of a checkpoint, damaged in every way: the run finds the truth or the checkpoint before it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar_omni_jax import checkpoint
from ar_omni_jax.checkpoint import CheckpointError, Checkpoints, Description
from ar_omni_jax.vocabulary import compact_vocabulary

VOCABULARY = compact_vocabulary(20, 8, 8, (2, 2))


def make_state(step, spikes=0):
    state = {"params": {"w": jax.random.normal(jax.random.key(step), (64, 16))}, "step": jnp.int32(step)}
    return state | ({"spikes": {"loss": jnp.full((spikes,), 7.0)}} if spikes else {})


def abstract(state):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state)


def describe(step):
    config = {"seed": 1, "train": {"steps": 100}}
    return Description(step, step, config, VOCABULARY.to_dict(), VOCABULARY.fingerprint, progress={"loss": 0.1 * step})


def save(folder, *states):
    checkpoints = Checkpoints(folder)
    for state in states:
        checkpoints.save(state, describe(int(state["step"])))
    checkpoints.close()


def restore(folder, state):
    return Checkpoints(folder).restore_latest(abstract(state), lambda description: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("good")
    save(folder, make_state(1), make_state(2))
    return folder


def kinds(folder):
    """One path of every kind of file in a checkpoint: by its name, and data files by their folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        kind = path.parent.name if path.parent.name == "d" else path.name
        found.setdefault(f"{path.relative_to(folder).parts[0]}/{kind}", path.relative_to(folder))
    return found


def flip(path):
    """One bit in every place of the file, as far apart as a test has time for: here, all bits of one in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def change_a_digit(path):
    """A text file that is still valid and says something else; any other file loses its first byte."""
    data = path.read_bytes()
    changed = data.replace(b'"step": 2', b'"step": 1').replace(b'"step":2', b'"step":1')
    path.write_bytes(changed if changed != data else data[1:])


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "changed": change_a_digit,
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damaged_file_costs_at_most_its_checkpoint(good, tmp_path, caplog, damage):
    """Either the file does not matter and the state is exact, or the checkpoint before it is taken and that is told."""
    outcomes = {}
    for kind, name in kinds(good / "2").items():
        folder = tmp_path / kind.replace("/", "_")
        shutil.copytree(good, folder)
        DAMAGES[damage](folder / "2" / name)
        caplog.clear()
        restored, description = restore(folder, make_state(0))
        outcomes[kind] = description.step
        assert description.step == description.loader_step == int(restored["step"]), kind
        assert description.progress == {"loss": 0.1 * description.step}, kind
        np.testing.assert_array_equal(restored["params"]["w"], make_state(description.step)["params"]["w"], kind)
        if description.step == 1:
            assert "going back to the checkpoint before it" in caplog.text, kind
            assert "set aside as corrupt-2-0" in caplog.text and (folder / "corrupt-2-0").is_dir(), kind
    # The files that hold the truth must have been missed.
    assert {kind for kind, step in outcomes.items() if step == 1} >= {"description/data.json"}, outcomes
    assert 1 in {step for kind, step in outcomes.items() if kind.startswith("state/")}, outcomes


def test_a_half_copied_checkpoint_is_passed_over(good, tmp_path, caplog):
    shutil.copytree(good, tmp_path / "run")
    (tmp_path / "run" / "3").mkdir()
    shutil.copytree(good / "2" / "state", tmp_path / "run" / "4" / "state")
    _, description = restore(tmp_path / "run", make_state(0))
    assert description.step == 2
    assert "corrupt-3-0" in caplog.text and "corrupt-4-0" in caplog.text


def test_a_description_that_was_edited_is_no_description(good, tmp_path):
    """It would train on other data, or count other steps, and nobody would know."""
    shutil.copytree(good, tmp_path / "run")
    file = tmp_path / "run" / "2" / "description" / "data.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"loader_step": 7}))
    with pytest.raises(CheckpointError, match="contents of the description have changed"):
        checkpoint.read_description(tmp_path / "run" / "2")


def test_checkpoints_of_before_had_no_seal(good, tmp_path):
    shutil.copytree(good, tmp_path / "run")
    file = tmp_path / "run" / "2" / "description" / "data.json"
    fields = json.loads(file.read_text())
    del fields["seal"]
    file.write_text(json.dumps(fields))
    assert restore(tmp_path / "run", make_state(0))[1].step == 2


@pytest.mark.parametrize(("saved", "wanted"), [(0, 4), (4, 0), (4, 6)])
def test_the_spike_detector_may_be_switched_in_a_resumed_run(tmp_path, saved, wanted):
    save(tmp_path, make_state(1, saved))
    restored, _ = restore(tmp_path, make_state(0, wanted))
    np.testing.assert_array_equal(restored["params"]["w"], make_state(1)["params"]["w"])
    if wanted:
        np.testing.assert_array_equal(restored["spikes"]["loss"], np.zeros(wanted))


def test_the_spike_detectors_memory_comes_back(tmp_path):
    save(tmp_path, make_state(1, 4))
    restored, _ = restore(tmp_path, make_state(0, 4))
    np.testing.assert_array_equal(restored["spikes"]["loss"], np.full(4, 7.0))
