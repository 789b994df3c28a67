"""The loop's promises, on a model of one weight: order of events, resuming, refusals, skipped steps."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from fake_run import VOCABULARY, lines, make_run, numbers, stop_at

from ar_omni_jax.checkpoint import CheckpointError, steps_in
from ar_omni_jax.training import loop
from ar_omni_jax.training.loop import FINISHED, INTERRUPTED, TrainingError, train
from ar_omni_jax.training.writers import Sample
from ar_omni_jax.vocabulary import compact_vocabulary


def test_trains_logs_and_saves_on_schedule(tmp_path):
    assert train(make_run(tmp_path)) == FINISHED
    assert [r["step"] for r in lines(tmp_path)] == [3, 6, 9, 12, 15, 18, 20]
    assert steps_in(tmp_path / "checkpoints") == [10, 15, 20]
    last = lines(tmp_path)[-1]
    assert last["nll/text"] == pytest.approx(last["weighted_nll"])
    assert {"tokens_per_second/all", "tokens_per_second/text", "flops_per_second", "input_wait"} <= last.keys()


def test_the_jsonl_line_is_the_mean_of_its_steps(tmp_path):
    train(make_run(tmp_path / "each", log_every=1))
    train(make_run(tmp_path / "three", log_every=3))
    each = {r["step"]: r["loss"] for r in lines(tmp_path / "each")}
    for record in lines(tmp_path / "three")[:-1]:
        steps = range(record["step"] - 2, record["step"] + 1)
        assert record["loss"] == pytest.approx(sum(each[s] for s in steps) / 3, rel=1e-12)


@pytest.mark.parametrize("at", [1, 4, 5, 6, 17])
def test_an_interrupted_run_continues_exactly(tmp_path, at):
    assert train(make_run(tmp_path / "whole")) == FINISHED
    stop, on_draw = stop_at(at)
    assert train(make_run(tmp_path / "parts", on_draw=on_draw), stop) == INTERRUPTED
    assert steps_in(tmp_path / "parts" / "checkpoints")[-1] == at
    assert train(make_run(tmp_path / "parts")) == FINISHED
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_a_window_that_an_interruption_cut_claims_no_speed(tmp_path):
    """Its first steps were another process's: their tokens over this process's time would be no rate."""
    stop, on_draw = stop_at(8)
    train(make_run(tmp_path, on_draw=on_draw), stop)
    train(make_run(tmp_path))
    rated = {record["step"] for record in lines(tmp_path) if "tokens_per_second/all" in record}
    assert 9 not in rated and {6, 12, 15, 18} <= rated


def test_a_crash_loses_nothing_but_time(tmp_path):
    """Lines after the last checkpoint are dropped and written again, once."""
    train(make_run(tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="the device is gone"):
        train(make_run(tmp_path / "parts", crash=13))
    assert steps_in(tmp_path / "parts" / "checkpoints") == [5, 10]
    assert [r["step"] for r in lines(tmp_path / "parts")][-1] == 12
    with open(tmp_path / "parts" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 13, "ki')  # a line that a kill cut short
    assert train(make_run(tmp_path / "parts")) == FINISHED
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_metrics_may_end_in_anything(tmp_path):
    """After a power cut a file may hold zeros, or bytes that are no text."""
    train(make_run(tmp_path, steps=15))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\0" * 40 + b'\xff\xfe\n[1]\n{"step": null}\n')
    assert train(make_run(tmp_path)) == FINISHED
    assert [r["step"] for r in lines(tmp_path)] == [3, 6, 9, 12, 15, 18, 20]


def test_a_failing_input_costs_no_step(tmp_path, capsys):
    train(make_run(tmp_path / "whole"))

    def fail(n):
        if n == 14:
            raise OSError("the disk that holds the data is gone")

    with pytest.raises(OSError, match="that holds the data is gone"):
        train(make_run(tmp_path / "parts", on_draw=fail))
    assert "saved step 14" in capsys.readouterr().out
    assert steps_in(tmp_path / "parts" / "checkpoints") == [5, 10, 14]
    assert train(make_run(tmp_path / "parts")) == FINISHED
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_only_its_interval(tmp_path):
    train(make_run(tmp_path / "whole"))
    stop, on_draw = stop_at(12)
    train(make_run(tmp_path / "parts", on_draw=on_draw), stop)
    (tmp_path / "parts" / "checkpoints" / "12" / "state" / "_METADATA").write_text("{")
    assert train(make_run(tmp_path / "parts")) == FINISHED
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_a_finished_run_says_so_and_can_be_prolonged(tmp_path, capsys):
    train(make_run(tmp_path))
    assert train(make_run(tmp_path)) == FINISHED
    assert "nothing to do: 20 steps are done" in capsys.readouterr().out
    assert train(make_run(tmp_path, steps=25)) == FINISHED
    assert "config.train.steps: 20 in the checkpoint, 25 now" in capsys.readouterr().out
    assert [r["step"] for r in lines(tmp_path)][-4:] == [20, 21, 24, 25]


def test_the_end_of_the_data_ends_training_with_a_checkpoint(tmp_path, capsys):
    assert train(make_run(tmp_path, total=7)) == FINISHED
    assert "the data ended after step 7" in capsys.readouterr().out
    assert steps_in(tmp_path / "checkpoints")[-1] == 7
    assert lines(tmp_path)[-1]["step"] == 7


def test_skipped_steps_are_counted_and_do_not_spoil_the_means(tmp_path):
    train(make_run(tmp_path, bad=[4]))
    record = lines(tmp_path)[1]
    assert record["skipped"] == 1
    assert np.isfinite(record["loss"])
    assert sum(r["skipped"] for r in lines(tmp_path)) == 1


def test_gives_up_after_too_many_bad_steps_in_a_row(tmp_path):
    with pytest.raises(TrainingError, match=r"not finite in the last 5 steps in a row \(step 12"):
        train(make_run(tmp_path, bad=range(7, 20)))
    assert steps_in(tmp_path / "checkpoints") == [5, 10]
    with pytest.raises(TrainingError, match=r"last checkpoint: none yet"):
        train(make_run(tmp_path / "at once", bad=range(20), checkpoint_every=100))


def test_bad_steps_with_good_ones_between_go_on(tmp_path):
    assert train(make_run(tmp_path, bad=range(0, 20, 2))) == FINISHED
    assert sum(r["skipped"] for r in lines(tmp_path)) == 10


def test_validates_on_schedule_from_the_first_held_out_batch(tmp_path):
    train(make_run(tmp_path, eval_every=8, eval_batches=50))
    records = lines(tmp_path, "validation")
    assert [r["step"] for r in records] == [8, 16, 20]
    assert all(r["tokens"] == 3 * 16 for r in records)  # the split has three batches
    assert records[0]["nll/text"] > 0


def test_samples_reach_tensorboard_and_the_disk(tmp_path):
    def sample(params, step):
        image = np.zeros((8, 8, 3), np.uint8)
        return [Sample("a", f"norm {float(jnp.abs(params['w']).sum()):.3f} at {step}", image, np.zeros(160), 16000)]

    train(make_run(tmp_path, sample=sample, sample_every=10))
    folder = tmp_path / "samples" / "step_0000010"
    assert {p.name for p in folder.iterdir()} == {"a.txt", "a.png", "a.wav"}
    events = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    for tag in (b"train/loss", b"samples/a", b"audio/wav", b"PNG"):
        assert tag in events


def test_a_failing_sample_does_not_end_the_run(tmp_path, caplog):
    def sample(params, step):
        raise ValueError("no picture today")

    assert train(make_run(tmp_path, sample=sample, sample_every=10)) == FINISHED
    assert "no picture today" in caplog.text


def test_loaders_are_closed(tmp_path):
    opened = []
    run = make_run(tmp_path, eval_every=10)
    train(dataclasses.replace(run, open_loader=lambda *a: opened.append(run.open_loader(*a)) or opened[-1]))
    assert len(opened) == 3
    assert all(loader.closed for loader in opened)


def test_another_vocabulary_is_refused_with_both_named(tmp_path):
    train(make_run(tmp_path))
    other = compact_vocabulary(30, 8, 8, (2, 2))
    with pytest.raises(CheckpointError, match=f"{VOCABULARY.fingerprint}.*{other.fingerprint}"):
        train(dataclasses.replace(make_run(tmp_path), vocabulary=other))


def test_another_tokenizer_is_refused(tmp_path):
    train(make_run(tmp_path))
    with pytest.raises(CheckpointError, match="text tokenizer t1, this run has t2"):
        train(dataclasses.replace(make_run(tmp_path), tokenizers={"text": "t2"}))


def test_another_model_is_refused_by_setting_and_by_shape(tmp_path):
    train(make_run(tmp_path))
    run = make_run(tmp_path)
    run.config.model.d_ff = 7
    with pytest.raises(CheckpointError, match=r"config\.model\.d_ff: 384 in the checkpoint, 7 now"):
        train(run)
    with pytest.raises(CheckpointError, match=r"params\.model\.w: float32\[4\] .* float32\[5\]"):
        train(make_run(tmp_path, width=5))


def test_another_data_set_is_told(tmp_path, capsys):
    train(make_run(tmp_path))
    train(dataclasses.replace(make_run(tmp_path, steps=25), data="data2"))
    assert "the data set was data1 and is data2" in capsys.readouterr().out


def test_starts_from_the_weights_of_another_run(tmp_path):
    train(make_run(tmp_path / "first"))
    run = make_run(tmp_path / "second", init_from=str(tmp_path / "first"), steps=1, log_every=1)
    train(run)
    fresh = make_run(tmp_path / "third", steps=1, log_every=1)
    train(fresh)
    assert lines(tmp_path / "second")[0]["loss"] != lines(tmp_path / "third")[0]["loss"]
    state = run.trainer.init(0)
    loaded = loop.initialize_from(state, str(tmp_path / "first"), VOCABULARY)
    assert not np.array_equal(loaded.params["model"]["w"], state.params["model"]["w"])
    assert int(loaded.step) == 0


def test_another_parent_is_refused_on_resume(tmp_path):
    for parent in ("a", "b"):
        train(make_run(tmp_path / parent))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    train(make_run(tmp_path / "run", init_from=a))
    told = rf"is of another model, optimizer or parent: config\.train\.init_from: '{a}' in the checkpoint, '{b}' now"
    with pytest.raises(CheckpointError, match=told + r"\. Use a new --workdir or the old values"):
        train(make_run(tmp_path / "run", init_from=b))
    shutil.rmtree(a)
    train(make_run(tmp_path / "run", init_from=a, steps=22))
    train(make_run(tmp_path / "run", steps=24))  # without a word of it: the run still knows where it began
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["init_from"] == a
    with pytest.raises(CheckpointError, match=told):
        train(make_run(tmp_path / "run", init_from=b, steps=26))
    with pytest.raises(CheckpointError, match=r"init_from: '' in the checkpoint"):
        train(make_run(tmp_path / "b", init_from=str(tmp_path / "run")))


def test_an_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="choose another --workdir"):
        train(make_run(tmp_path / "file"))
