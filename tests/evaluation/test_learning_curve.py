"""The command on folders of runs: numbers, verdicts, and what it refuses."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from ar_omni_jax.config import base_config
from ar_omni_jax.evaluation import learning_curve
from ar_omni_jax.evaluation.results import TaskResult
from ar_omni_jax.evaluation.systems import NAMES, TRAINED

SCORES = {300: (40.0, 72.0), 900: (70.0, 42.0), 2700: (90.0, 22.0)}  # steps: caption, tts


def result(task, score, metric, count=64):
    examples = [{"id": f"{task}-{n}", "truth": f"words {n}"} for n in range(count)]
    return TaskResult(task, score, score - 4, score + 4, examples, metric=metric, title=task).to_dict()


BUDGETS = {"max_text": 48, "max_seconds": 6.0}


def judges(normalizer="words", recognizer="pocketsphinx", more=()):
    words = {"measure": "wer", "normalizer": normalizer, "recognizer": recognizer}
    return {"caption": [{"measure": "attributes", "judge": "toy world"}, *more], "tts": [words]}


def write_run(
    folder, steps, caption, tts, ceiling=1.0, step=None, decoding=None, count=64, told=None, batch=16, **settings
):
    config = base_config()
    config.train.steps, config.data.batch_size, config.data.length = steps, 2, 512
    for key, value in settings.items():
        config[key] = value
    train = folder / "train"
    train.mkdir(parents=True)
    (train / "config.json").write_text(json.dumps(config.to_dict()))
    lines = [
        {"kind": "train", "step": steps, "tokens_per_second/all": 1000.0, "loss": 1.0},
        {"kind": "validation", "step": steps, "nll/text": 0.5, "nll/image": 0.4, "nll/speech": 3.0},
    ]
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    systems = {
        TRAINED: {"caption": result("caption", caption, "attributes", count), "tts": result("tts", tts, "wer", count)},
        NAMES["ceiling"]: {"tts": result("tts", ceiling, "wer", count)},
    }
    record = {"step": step or steps, "decoding": decoding or {"temperature": 0.7}, "seed": 0, "systems": systems}
    record |= {"budgets": BUDGETS, "judges": judges(), "batch": batch} if told is None else told
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    return folder


def run_command(capsys, output, *folders):
    code = learning_curve.main([f"--runs={','.join(map(str, folders))}", f"--output={output}"])
    return code, capsys.readouterr()


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / str(steps), steps, *scores) for steps, scores in SCORES.items()]


def test_points_laws_and_verdicts(runs, tmp_path, capsys):
    code, said = run_command(capsys, tmp_path / "out", *reversed(runs))
    assert code == 0, said.err
    found = json.loads((tmp_path / "out" / "learning_curve.json").read_text())
    assert [run["tokens"] for run in found["runs"]] == [steps * 2 * 512 for steps in SCORES]
    assert found["runs"][0]["held_out_nats"] == {"text": 0.5, "image": 0.4, "speech": 3.0}
    caption, tts = found["tasks"]["caption"], found["tasks"]["tts"]
    assert caption["goal"] == 85 and "reached by 2700" in caption["verdict"]
    assert tts["goal"] == 16 and tts["best"] == 1, "points above the ceiling"

    def logit(wer):
        p = (100 - wer) / 99
        return np.log(p / (1 - p))

    slope = (logit(22) - logit(42)) / np.log(3)
    expected = 2700 * 1024 * np.exp((logit(16) - logit(22)) / slope)
    assert tts["fits"]["logit law, two largest"]["tokens_to_goal"] == pytest.approx(expected, rel=0.03)
    every = tts["fits"]["logit law, all sizes"]
    assert every["tokens_to_goal_low"] < expected < every["tokens_to_goal_high"]
    wrong = [1 - (100 - wer) / 99 for wer in (42, 22, 16)]
    expected = 2700 * 1024 * (wrong[1] / wrong[2]) ** (np.log(3) / np.log(wrong[0] / wrong[1]))
    assert tts["fits"]["power law, two largest"]["tokens_to_goal"] == pytest.approx(expected, rel=0.03)
    assert "not reached; expected at" in tts["verdict"]
    page = (tmp_path / "out" / "learning_curve.md").read_text()
    assert page in said.out and "| 900 | 0.92 | 70.0 [66.0, 74.0] | 42.0 [38.0, 46.0] | 0.500 |" in page
    assert Image.open(tmp_path / "out" / "learning_curve.png").size[0] > 500


def test_a_curve_that_bends_is_said_to_be_open(tmp_path, capsys):
    scores = {300: 90.0, 900: 60.0, 2700: 58.0}
    folders = [write_run(tmp_path / str(s), s, 50.0, wer) for s, wer in scores.items()]
    assert run_command(capsys, tmp_path / "out", *folders)[0] == 0
    found = json.loads((tmp_path / "out" / "learning_curve.json").read_text())["tasks"]["tts"]
    assert "open" in found["verdict"] and found["fits"]["logit law, two largest"]["tokens_to_goal"] is None


def test_differing_settings_are_told(runs, tmp_path, capsys):
    other = write_run(tmp_path / "other", 8100, 95.0, 10.0, seed=5)
    code, said = run_command(capsys, tmp_path / "a", *runs, other)
    assert code == 0 and "not alike" not in said.out, "seeds may differ"
    config = json.loads((other / "train" / "config.json").read_text())
    config["model"]["num_layers"] += 1
    (other / "train" / "config.json").write_text(json.dumps(config))
    code, said = run_command(capsys, tmp_path / "b", *runs, other)
    assert code == 0 and "setting model.num_layers differs" in said.out


def no_evaluation(folder):
    (folder / "evaluation" / "evaluation.json").unlink()


def half_trained(folder):
    path = folder / "train" / "config.json"
    config = json.loads(path.read_text())
    config["train"]["steps"] *= 2
    path.write_text(json.dumps(config))


def no_training(folder):
    (folder / "train" / "metrics.jsonl").unlink()


def damaged(folder):
    (folder / "evaluation" / "evaluation.json").write_text('{"step": 2700, "systems": []}')


@pytest.mark.parametrize(
    "harm,message",
    [
        (no_evaluation, "evaluation.json"),
        (half_trained, "stands at step 2700 of 5400"),
        (no_training, "is no run"),
        (damaged, "damaged"),
    ],
)
def test_a_run_that_is_no_point_is_named(runs, tmp_path, capsys, harm, message):
    harm(runs[2])
    code, said = run_command(capsys, tmp_path / "out", *runs)
    assert code == 1 and message in said.err and "2700" in said.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "other,message",
    [
        ({"decoding": {"temperature": 1.0}}, "decoding temperature differs: 1.0 .odd.; 0.7 "),
        ({"count": 32}, "documents of caption differs"),
        ({"told": {"judges": judges("whisper")}}, 'judge of tts differs: .*"normalizer": "whisper".* .odd.; '),
        ({"told": {"judges": judges(recognizer="whisper-tiny")}}, "judge of tts differs: .*whisper-tiny"),
        ({"told": {"budgets": BUDGETS | {"max_text": 256}}}, "budget max_text differs: 256 .odd.; 48 "),
        ({"told": {"budgets": BUDGETS | {"max_seconds": 2.0}}}, "budget max_seconds differs: 2.0 .odd.; 6.0 "),
        ({"told": {"judges": {"tts": ["wer"]}}}, "odd/evaluation/evaluation.json is damaged"),
        ({"step": 5}, "is of step 5 and the run ended at 100"),
    ],
)
def test_runs_that_were_judged_otherwise_are_refused(runs, tmp_path, capsys, other, message):
    odd = write_run(tmp_path / "odd", 100, 20.0, 99.0, **other)
    code, said = run_command(capsys, tmp_path / "out", *runs, odd)
    assert code == 1 and re.search(message, said.err), said.err


def test_what_changes_no_score_is_no_other_judgement(runs, tmp_path, capsys):
    """Rows decoded together change rounding alone, and CIDEr beside the toy world's judge makes no point."""
    told = {"budgets": BUDGETS, "judges": judges(more=[{"measure": "cider", "scale": 100}])}
    other = [
        write_run(tmp_path / "rows", 100, 20.0, 99.0, batch=4),
        write_run(tmp_path / "more", 200, 20.0, 99.0, told=told),
    ]
    code, said = run_command(capsys, tmp_path / "out", *runs, *other)
    assert code == 0 and "not alike" not in said.out, said.err


def test_evaluations_of_before_budgets_were_told_can_be_read(runs, tmp_path, capsys):
    old = [write_run(tmp_path / f"budget{n}", 100 * n, 20.0, 99.0, told={}) for n in (1, 2)]
    code, said = run_command(capsys, tmp_path / "old", *old)
    assert code == 0 and "not alike" not in said.out, said.err
    code, said = run_command(capsys, tmp_path / "both", *runs, *old)
    assert code == 0, said.err
    assert "--max_text and --max_seconds are not told by the older evaluation of budget1, budget2" in said.out


def test_one_size_is_no_curve(runs, tmp_path, capsys):
    code, said = run_command(capsys, tmp_path / "out", runs[0])
    assert code == 1 and "two sizes or more" in said.err
    code, said = run_command(capsys, tmp_path / "out", runs[0], runs[0])
    assert code == 1 and "given twice" in said.err
