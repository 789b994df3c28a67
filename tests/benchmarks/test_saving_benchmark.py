"""The benchmark of saves: what it measures on a tiny model, and what it makes of the times."""

import json

import pytest

from ar_omni_jax.benchmarks import saving
from ar_omni_jax.checkpoint import Checkpoints, find_checkpoint, load_arrays


def times(**changes):
    found = {
        "alone": [2.0, 2.0, 2.2],
        "beside": [2.2, 2.4],
        "saves": [{"stall": 0.04, "waited": 0.0}, {"stall": 0.08, "waited": 0.01}, {"stall": 0.06, "waited": 0.0}],
        "background": 5.0,
        "waited_for": 3.0,
        "state_bytes": 1 << 30,
        "disk_bytes": 1 << 29,
    }
    return found | changes


def record(**changes):
    machine = {"processor": "P", "cores": 2, "load": 0.5}
    found = times(**changes)
    names = {"size": "100m", "machine": machine, "name": "jax", "times": found}
    return names | {"summary": saving.summary(found)}


def test_shares_are_of_a_step_with_nothing_beside_it():
    summary = saving.summary(times())
    assert summary["stall_share"] == pytest.approx(0.03) and summary["longest_stall_share"] == pytest.approx(0.04)
    assert summary["beside_share"] == pytest.approx(0.15) and summary["waited_for_share"] == pytest.approx(1.5)
    assert summary["goal_met"] is True


def test_one_long_stall_misses_the_goal():
    slow = times(saves=[{"stall": 0.04, "waited": 0.0}] * 4 + [{"stall": 0.11, "waited": 0.1}])
    assert saving.summary(slow)["goal_met"] is False
    assert "longest stall 5.5% of a step; the goal, below 5%, is not met" in saving.table(record(**slow))


def test_saves_that_end_within_their_step_leave_a_line_out():
    shown = saving.table(record(beside=[]))
    assert "steps beside" not in shown and "P, 2 cores, load 0.5" in shown and "is met" in shown
    assert "steps beside a save" in saving.table(record())


def test_the_command_saves_as_training_does_and_writes_its_record(tmp_path, capsys, monkeypatch):
    saved = []

    class Looked(saving.TimedCheckpoints):
        def close(self):
            super().close()
            path = find_checkpoint(self.directory)
            saved.append((path.name, sorted(load_arrays(path, "params.")[0])))

    monkeypatch.setattr(saving, "TimedCheckpoints", Looked)
    folder = tmp_path / "on_this_disk"
    command = ["--size=tiny", "--every=2", "--saves=2", f"--folder={folder}", f"--output={tmp_path / 'record.json'}"]
    assert saving.main(command) == 0
    found = json.loads((tmp_path / "record.json").read_text())
    assert len(found["times"]["saves"]) == 2 and found["times"]["alone"] and found["machine"]["cores"] > 0
    assert len(found["times"]["alone"]) + len(found["times"]["beside"]) == 6
    assert found["summary"]["stall_seconds"] > 0 and found["summary"]["background_seconds"] > 0
    assert found["times"]["disk_bytes"] > found["times"]["state_bytes"] / 2
    [(name, arrays)] = saved
    assert name == "7" and "model.embedding" in arrays  # the last one, which is waited for
    assert not any(folder.iterdir()), "checkpoints are deleted"
    assert "stall of a save in the background" in capsys.readouterr().out


def test_waiting_for_a_save_under_way_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "wait", lambda self: saving.time.sleep(0.05))
    checkpoints = saving.TimedCheckpoints(tmp_path)
    checkpoints.wait()
    checkpoints.wait()
    assert 0.1 <= checkpoints.waited < 5.0


def test_numbers_of_saves_are_checked(capsys):
    with pytest.raises(SystemExit):
        saving.parse_arguments(["--every=0"])
    assert "at least 1" in capsys.readouterr().err
