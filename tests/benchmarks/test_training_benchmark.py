"""Both sides of the training benchmark do the same work: documents, losses, and steps after the first."""

import json

import numpy as np
import pytest

from ar_omni_jax.benchmarks import training, training_work
from ar_omni_jax.benchmarks.training_work import SIZES, documents, packed_batch, padded_batches

SIZE = SIZES["tiny"]


@pytest.mark.parametrize("name", ["tiny", "toy"])
def test_rows_and_padded_batches_hold_the_same_targets(name):
    size = SIZES[name]
    for step in range(3):
        found = documents(size, step)
        packed, padded = packed_batch(size, found), padded_batches(size, found)
        assert packed["tokens"].shape == (size.rows, size.length)
        counted = []
        for batches in ([packed], padded):
            pairs = [
                np.stack(
                    [b[key].ravel()[(b["target_class"] > 0).ravel()] for key in ("tokens", "targets", "loss_weights")]
                )
                for b in batches
            ]
            counted.append(np.concatenate(pairs, axis=1))
        assert counted[0].shape[1] == sum(len(d.tokens) - 1 for d in found)
        ours, theirs = (c[:, np.lexsort(c)] for c in counted)
        np.testing.assert_array_equal(ours, theirs)
        assert sum(len(d.tokens) for d in found) > (0.9 if name == "toy" else 0.75) * size.rows * size.length
    assert {d.group for d in documents(SIZES["toy"], 0)} == {"text", "image", "speech"}


@pytest.mark.slow
def test_the_command_compares_equal_losses_and_writes_its_record(tmp_path, capsys):
    path = tmp_path / "record.json"
    assert training.main(["--size=tiny", "--steps=2", "--repeats=1", f"--output={path}"]) == 0
    record = json.loads(path.read_text())
    for side, row in record["sides"].items():
        assert row["tokens_per_second"] > 0 and row["peak_bytes"] > row["ready_bytes"] > 50 << 20, side
    assert record["sides"]["ours"]["useful_share"] > record["sides"]["torch"]["useful_share"]
    assert "times the speed" in capsys.readouterr().out


@pytest.mark.slow
def test_losses_stay_together_over_steps():
    from ar_omni_jax.benchmarks.training_ours import OurStep
    from ar_omni_jax.benchmarks.training_torch import TorchStep

    ours = OurStep(SIZE, 4, attention="rowwise")
    theirs = TorchStep(SIZE, *ours.weights())
    for step in range(4):
        found = documents(SIZE, step)
        expected = theirs(padded_batches(SIZE, found))
        assert ours(packed_batch(SIZE, found)) == pytest.approx(expected, rel=3e-3 if step else 1e-4)


def test_losses_that_differ_end_the_comparison(monkeypatch):
    row = {"name": "", "losses": [1.0], "seconds": [1.0], "useful_tokens": [1], "first_seconds": 1, "useful_share": 1}
    sides = {"weights": {}, "ours": row | {"peak_bytes": 1}, "torch": row | {"peak_bytes": 1, "losses": [1.1]}}
    monkeypatch.setattr(training, "_child", lambda options, side, folder: sides[side])
    with pytest.raises(RuntimeError, match="differ: 1.0 here, 1.1"):
        training.compare(training.parse_arguments([]))


def test_flags_are_checked(capsys):
    with pytest.raises(SystemExit):
        training.parse_arguments(["--steps=0"])
    assert "at least 1" in capsys.readouterr().err
    assert training_work.model_of(SIZE).norm_placement == "swin"
