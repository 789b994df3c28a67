"""The ablation's variants, and its runner with commands made for it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_runs import write_run

from ar_omni_jax.ablation import page, results, runner
from ar_omni_jax.ablation.command import run_command
from ar_omni_jax.ablation.keep import keep
from ar_omni_jax.ablation.runner import AblationError, Plan
from ar_omni_jax.ablation.study import ABLATION, STABILITY
from ar_omni_jax.ablation.variants import VARIANTS
from ar_omni_jax.config import base_config, load_config

ROOT = Path(__file__).resolve().parents[2]


def test_every_variant_is_a_configuration_that_changes_what_it_says():
    full = load_config("configs/ablation.py:full", [])
    for name, variant in VARIANTS.items():
        config = load_config(f"configs/ablation.py:{name}", [])
        for key, value in variant.settings.items():
            section, _, leaf = key.partition(".")
            assert config[section][leaf] == value != full[section][leaf]
    assert not VARIANTS["full"].settings
    with pytest.raises(Exception, match="unknown variant 'fulll'"):
        load_config("configs/ablation.py:fulll", [])
    assert base_config().loss.perceptual_weight == 0 < full.loss.perceptual_weight


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "dataset.json").write_text("{}")
    (tmp_path / "test.jsonl").write_text("{}\n")
    return Plan(tmp_path / "packed", tmp_path / "test.jsonl", ("full", "plain"), seeds=2)


def stand_in(monkeypatch, script):
    """Commands that run `script` with the run's folder as its argument."""

    def commands(plan, output, variant, seed):
        folder = runner.workdir(output, variant, seed)
        return [[sys.executable, "-c", script, str(folder)]]

    monkeypatch.setattr(runner, "commands", commands)


DONE = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1]) / "evaluation"
folder.mkdir(parents=True)
(folder / "evaluation.json").write_text("{}")
"""


def test_seeds_come_in_rounds_and_finished_runs_are_kept(plan, tmp_path, monkeypatch, capsys):
    stand_in(monkeypatch, DONE)
    output = tmp_path / "out"
    runner.run_all(plan, output)
    told = [line.split(": ")[1].split(", about")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["full, seed 0", "plain, seed 0", "full, seed 1", "plain, seed 1"]
    (runner.workdir(output, "plain", 0) / "evaluation" / "evaluation.json").unlink()
    (runner.workdir(output, "plain", 0) / "evaluation").rmdir()
    runner.run_all(plan, output)
    assert capsys.readouterr().out.count("==>") == 1


def test_a_command_that_fails_is_named(plan, tmp_path, monkeypatch):
    stand_in(monkeypatch, "import sys; sys.exit(7)")
    with pytest.raises(AblationError, match="exit code 7 of"):
        runner.run_all(plan, tmp_path / "out")


def test_other_settings_do_not_mix(plan, tmp_path, monkeypatch):
    stand_in(monkeypatch, DONE)
    runner.run_all(plan, tmp_path / "out")
    changed = Plan(plan.packed, plan.manifest, ("full",), seeds=1, limit=9)
    with pytest.raises(AblationError, match="limit was 64, is 9"):
        runner.run_all(changed, tmp_path / "out")


def test_rows_whose_codes_were_rounded_on_another_processor_are_the_same_data(plan, tmp_path, monkeypatch):
    def packed(tokens, digest):
        origin = {"documents": 3, "tokens": tokens, "digest": digest, "shards": digest}
        file = tmp_path / "packed" / "dataset.json"
        file.write_text(json.dumps({"splits": {"train": {"tokens": tokens, "origin": origin}}}))

    stand_in(monkeypatch, DONE)
    packed(900, "here")
    runner.run_all(plan, tmp_path / "out")
    packed(900, "there")
    runner.run_all(plan, tmp_path / "out")
    packed(901, "here")
    with pytest.raises(AblationError, match="packed was [0-9a-f]{16}, is [0-9a-f]{16}"):
        runner.run_all(plan, tmp_path / "out")
    (tmp_path / "packed" / "dataset.json").write_text("{")
    with pytest.raises(AblationError, match="dataset.json is damaged .*pack_shards"):
        runner.run_all(plan, tmp_path / "out")


def test_data_are_known_by_what_they_hold(plan, tmp_path, monkeypatch):
    stand_in(monkeypatch, DONE)
    runner.run_all(plan, tmp_path / "out")
    (tmp_path / "packed").rename(tmp_path / "moved")
    moved = dataclasses.replace(plan, packed=tmp_path / "moved")
    runner.run_all(moved, tmp_path / "out")
    (tmp_path / "test.jsonl").write_text('{"id": "another"}\n')
    with pytest.raises(AblationError, match="manifest was [0-9a-f]{16}, is [0-9a-f]{16}"):
        runner.run_all(moved, tmp_path / "out")


def test_what_is_kept_makes_the_same_page_and_goes_on(plan, tmp_path, monkeypatch, capsys):
    output, kept = tmp_path / "out", tmp_path / "kept"
    command = ["--output", str(output), "--keep", str(kept)]
    assert run_command(ABLATION, "", page.write_page, command) == 1 and "no finished run" in capsys.readouterr().err
    stand_in(monkeypatch, "import sys; sys.exit(1)")
    with pytest.raises(AblationError):  # which leaves the plan
        runner.run_all(plan, output)
    write_run(output, "full", 0, 0.75)
    write_run(output, "full", 10, 0.5)
    write_run(output, "plain", 0, 0.5)
    results_file = runner.workdir(output, "full", 0) / runner.JUDGED
    paths = {"checkpoint": "/home/somebody/run", "data": "/home/somebody/test.jsonl"}
    results_file.write_text(json.dumps(json.loads(results_file.read_text()) | paths))
    assert run_command(ABLATION, "", page.write_page, command) == 0 and "kept 3 runs" in capsys.readouterr().out
    page.write_page(output)
    page.write_page(kept)
    assert (kept / "index.html").read_text() == (output / "index.html").read_text()
    assert not any("somebody" in file.read_text() for file in kept.rglob("*.json"))
    (tmp_path / "other").mkdir()
    theirs = json.loads((output / runner.PLAN_FILE).read_text()) | {"limit": 9}
    (tmp_path / "other" / runner.PLAN_FILE).write_text(json.dumps(theirs))
    assert run_command(ABLATION, "", page.write_page, [*command[:-1], str(tmp_path / "other")]) == 1
    assert "another kind stand there; give another --keep" in capsys.readouterr().err
    assert json.loads((tmp_path / "other" / runner.PLAN_FILE).read_text()) == theirs
    stand_in(monkeypatch, DONE)
    runner.run_all(plan, kept)
    assert [line.split(": ")[1].split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["full", "plain"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": ("ful",)}, "unknown variants ful"),
        ({"variants": ("full", "full")}, "each variant once"),
        ({"seeds": 0}, "at least 1"),
        ({"packed": Path("nowhere")}, "nowhere does not exist"),
    ],
)
def test_plans_that_cannot_be_are_refused(plan, change, message):
    given = {name: getattr(plan, name) for name in ("packed", "manifest", "variants", "seeds")} | change
    with pytest.raises(AblationError, match=message):
        Plan(**given)


@pytest.mark.parametrize(
    ("study", "setting"),
    [
        (ABLATION, "seed=7"),  # three runs of one seed would be taken for three seeds that agree
        (ABLATION, "data.path=elsewhere"),
        (ABLATION, "loss.perceptual_weight=0.5"),  # "no_perceptual" would have it too
        (ABLATION, "model.norm_placement=pre"),
        (STABILITY, "optimizer.peak_lr=0.001"),  # ten times a rate would be that rate
        (STABILITY, "optimizer.muon_lr=0.01"),
    ],
)
def test_settings_that_would_make_runs_of_two_names_the_same_are_refused(plan, study, setting):
    given = {"packed": plan.packed, "manifest": plan.manifest, "seeds": 3, "study": study, "variants": study.usual}
    with pytest.raises(AblationError, match=f"config.{setting}: .* is what the runs differ in"):
        Plan(settings=(f"--config.{setting}",), **given)
    allowed = ("--config.train.steps=600", "--config.train.log_every=5")
    if study is STABILITY:
        allowed += ("--config.optimizer.muon_lr=0",)
    assert Plan(settings=allowed, **given).settings == allowed


def test_an_interruption_waits_for_the_training_to_save(tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "dataset.json").write_text("{}")
    (tmp_path / "test.jsonl").write_text("{}\n")
    saves = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.5); pathlib.Path(sys.argv[1], 'saved').touch(); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, save)\n"
        "pathlib.Path(sys.argv[1]).mkdir(parents=True)\npathlib.Path(sys.argv[1], 'begun').touch()\ntime.sleep(60)\n"
    )
    driver = (
        "import sys\nfrom pathlib import Path\nfrom ar_omni_jax.ablation import runner\n"
        f"root = Path({str(tmp_path)!r})\n"
        "def commands(plan, output, variant, seed):\n"
        f"    return [[sys.executable, '-c', {saves!r}, str(runner.workdir(output, variant, seed))]]\n"
        "runner.commands = commands\n"
        "plan = runner.Plan(root / 'packed', root / 'test.jsonl', ('full',), 1)\n"
        "try:\n    runner.run_all(plan, root / 'out')\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", driver], env=environment)
    folder = runner.workdir(tmp_path / "out", "full", 0)
    deadline = time.monotonic() + 60
    while not (folder / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert (folder / "saved").exists()


def test_runs_of_another_configuration_are_refused(plan, tmp_path):
    plan = dataclasses.replace(plan, variants=("plain",), seeds=1)
    output, kept = tmp_path / "out", tmp_path / "kept"
    write_run(output, "plain", 0, 0.5)
    (output / runner.PLAN_FILE).write_text(json.dumps(plan.comparable()))
    file = runner.workdir(output, "plain", 0) / "config.json"
    trained = load_config("configs/ablation.py:plain", [w.removeprefix("--config.").split("=") for w in plan.settings])
    trained.data.path, trained.train.log_every = "/home/somebody/packed", 7
    file.write_text(json.dumps(trained.to_dict()))
    runner.run_all(plan, output)
    keep(output, ABLATION, kept)
    assert "somebody" not in (runner.workdir(kept, "plain", 0) / "config.json").read_text()
    runner.run_all(plan, kept)
    trained.optimizer.muon_lr = 0.5
    for folder in (output, kept):
        (runner.workdir(folder, "plain", 0) / "config.json").write_text(json.dumps(trained.to_dict()))
        with pytest.raises(AblationError, match=r"plain/seed-0/config.json: .*config.optimizer.muon_lr: 0.5 then, 0.0"):
            runner.run_all(plan, folder)
    file.write_text("[")
    with pytest.raises(AblationError, match="config.json is damaged"):
        runner.run_all(plan, output)


@pytest.mark.parametrize("text", ["{", "[]", '{"limit": 3}', None])
def test_a_plan_that_is_damaged_or_gone_is_named(plan, tmp_path, capsys, monkeypatch, text):
    output = tmp_path / "out"
    write_run(output, "full", 0, 0.5)
    if text is not None:
        (output / runner.PLAN_FILE).write_text(text)
        with pytest.raises(AblationError, match="plan.json"):
            runner.run_all(plan, output)
    for more in (["--page_only"], ["--keep", str(tmp_path / "kept")]):
        assert run_command(ABLATION, "", page.write_page, ["--output", str(output), *more]) == 1
        error = capsys.readouterr().err
        assert "plan.json" in error and "remove it, and the command that made the runs" in error


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}'])
def test_a_damaged_record_of_an_answer_is_named(plan, tmp_path, capsys, text):
    output = tmp_path / "out"
    write_run(output, "full", 0, 0.5)
    (output / runner.PLAN_FILE).write_text(json.dumps(plan.comparable()))
    record = runner.workdir(output, "full", 0) / "evaluation" / "t2i" / "000.json"
    record.write_text(text)
    for more in (["--page_only"], ["--keep", str(tmp_path / "kept")]):
        assert run_command(ABLATION, "", page.write_page, ["--output", str(output), *more]) == 1
        assert f"error: {record} is damaged" in (error := capsys.readouterr().err)
        assert f"remove it and {record.parents[1] / 'evaluation.json'}, and evaluate again" in error
    record.write_text('{"files": []}')
    judged = record.parents[1] / "evaluation.json"
    judged.write_text("[]")
    assert run_command(ABLATION, "", page.write_page, ["--output", str(output), "--keep", str(tmp_path / "kept")]) == 1
    assert f"error: {judged} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", '{"splits": {"train": 5}}', '{"splits": []}'])
def test_rows_whose_description_is_damaged_are_named(plan, tmp_path, text):
    (tmp_path / "packed" / "dataset.json").write_text(text)
    with pytest.raises(AblationError, match="dataset.json is damaged .*pack_shards"):
        plan.comparable()


def test_the_first_run_judges_what_all_scores_are_measured_by(plan, tmp_path):
    def systems(variant, seed):
        words = runner.commands(plan, tmp_path, variant, seed)[1]
        return [word for word in words if word in ("--no_baselines", "--systems=chance,ceiling,truth")]

    assert systems("full", 0) == ["--systems=chance,ceiling,truth"] and systems("plain", 0) == ["--no_baselines"]
    write_run(tmp_path, "full", 0, 0.5)  # of a study whose runs never judged it
    assert systems("plain", 0) == ["--systems=chance,ceiling,truth"] and systems("full", 1) == ["--no_baselines"]
    assert results.read_yardsticks(tmp_path, ABLATION) == {}
    (tmp_path / "plan.json").write_text(json.dumps(plan.comparable()))
    page.write_page(tmp_path)
    assert "another document" not in (tmp_path / "index.html").read_text()
    write_run(tmp_path, "plain", 0, 0.5)
    file = runner.workdir(tmp_path, "plain", 0) / "evaluation" / "evaluation.json"
    found = json.loads(file.read_text())
    found["systems"]["another document's answer"] = {"t2i": {"score": 24.2, "low": 20.0, "high": 28.7}}
    file.write_text(json.dumps(found))
    assert systems("full", 1) == ["--no_baselines"]
    page.write_page(tmp_path)
    assert "24.2<br><small>20.0 … 28.7" in (tmp_path / "index.html").read_text()
    assert json.loads((tmp_path / "ablation.json").read_text())["yardsticks"]["another document's answer"]["t2i"]
    del found["systems"]["another document's answer"]["t2i"]["low"]
    file.write_text(json.dumps(found))
    with pytest.raises(AblationError, match="evaluation.json is damaged"):
        page.write_page(tmp_path)
