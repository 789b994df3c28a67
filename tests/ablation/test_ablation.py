"""The ablation's statistics on runs made by hand, and its runner with commands made for it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ar_omni_jax.ablation import page, runner, summary
from ar_omni_jax.ablation.runner import AblationError, Plan
from ar_omni_jax.ablation.variants import VARIANTS
from ar_omni_jax.config import base_config, load_config

ROOT = Path(__file__).resolve().parents[2]


def made_run(seed, attributes, edits=(1, 1), words=(4, 4), norms=()):
    train = [{"step": i, "grad_norm": float(n), "skipped": 0.0, "nll/text": 1.0 / (i + 1)} for i, n in enumerate(norms)]
    top = {"caption": np.array(attributes, float), "asr": np.array(edits, float)}
    bottom = {"caption": np.ones(len(attributes)), "asr": np.array(words, float)}
    return summary.Run(seed, top, bottom, train, [{"step": 9, "nll/text": 0.5 + seed}])


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


def test_a_score_is_the_ratio_of_sums_and_its_interval_holds_it():
    runs = [made_run(0, [1, 0, 0.5, 0.5], (1, 3), (4, 6)), made_run(1, [1, 1, 1, 0], (0, 1), (4, 6))]
    caption, asr = summary.interval(runs, "caption"), summary.interval(runs, "asr")
    assert caption["seeds"] == [50.0, 75.0] and caption["mean"] == 62.5
    assert asr["seeds"] == [40.0, 10.0] and asr["mean"] == 25.0
    assert caption["low"] < 50 < caption["mean"] < 75 < caption["high"] <= 100


def test_the_interval_covers_what_seeds_and_documents_vary():
    """Against the textbook standard error of a mean of means, with many seeds and documents of known variance."""
    rng = np.random.default_rng(1)
    of_seed = rng.normal(0.5, 0.05, 40)
    runs = [made_run(i, rng.normal(m, 0.2, 50)) for i, m in enumerate(of_seed)]
    found = summary.interval(runs, "caption")
    spread = 100 * np.std([run.top["caption"].mean() for run in runs], ddof=1) / np.sqrt(len(runs))
    inner = 100 * 0.2 / np.sqrt(50 * 40)  # documents drawn again within each seed add theirs
    expected = 2 * 1.96 * np.hypot(spread, inner)
    assert found["high"] - found["low"] == pytest.approx(expected, rel=0.15)


def test_differences_pair_seeds_and_documents():
    rng = np.random.default_rng(2)
    base = [made_run(i, rng.random(30)) for i in range(3)]
    better = [made_run(run.seed, run.top["caption"] + 0.1) for run in base]
    found = summary.interval(better, "caption", base)
    assert found["mean"] == pytest.approx(10) and found["low"] == pytest.approx(10) == found["high"]
    with pytest.raises(ValueError, match="same seeds"):
        summary.interval(better[:2], "caption", base[1:])


def test_differences_are_of_the_seeds_that_both_have():
    table = summary.summarize({"full": [made_run(0, [1, 1]), made_run(1, [0, 0])], "plain": [made_run(1, [1, 1])]})
    assert table["plain"]["differences"]["caption"]["seeds"] == [100.0]
    assert table["full"]["differences"] == {}
    assert table["full"]["losses"]["text"] == [0.5, 1.5]


def test_spikes_are_counted_against_the_median_before_them():
    quiet, loud = [1.0] * 60, [9.0] * 5 + [1.0] * 55
    loud[40], loud[50] = 3.5, 2.9
    assert summary.stability([made_run(0, [1, 1], norms=quiet)]) == {"spikes": 0, "largest": 1.0, "skipped": 0}
    assert summary.stability([made_run(0, [1, 1], norms=loud)]) == {"spikes": 1, "largest": 3.5, "skipped": 0}


def test_verdicts_agree_disagree_or_do_not_tell():
    def row(name, mean, low, high):
        differences = {"tts": {"mean": mean, "low": low, "high": high, "seeds": [mean]}}
        return {"paper": VARIANTS[name].paper, "differences": differences}

    table = {
        "full": {"paper": VARIANTS["full"].paper, "differences": {}},
        "no_swin": row("no_swin", 5, 1, 9),  # worse TTS: higher error
        "plain": row("plain", -5, -9, -1),
        "no_perceptual": row("no_perceptual", 5, -1, 9),
        "no_reweighting": row("no_reweighting", 5, 1, 9),  # not in the paper
    }
    says = {v["variant"]: (v["paper"], v["says"]) for v in page.verdicts(table)}
    assert says == {
        "no_swin": ("worse", "agrees"),
        "plain": ("worse", "disagrees"),
        "no_perceptual": ("worse", "not told apart"),
    }


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "packed").mkdir()
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


def test_an_interruption_waits_for_the_training_to_save(tmp_path):
    (tmp_path / "packed").mkdir()
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


def write_run(output, variant, seed, score):
    """The files that a training and an evaluation leave."""
    folder = runner.workdir(output, variant, seed)
    (folder / "evaluation" / "t2i").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "evaluation" / "t2i" / "000.png")
    examples = [{"attributes": score, "truth": f"a <red> circle {i}"} for i in range(3)]
    systems = {"trained model": {task: {"examples": examples} for task in ("caption", "t2i")}}
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps({"systems": systems}))
    records = [{"step": 20 * i, "kind": "train", "nll/text": 2.0 - i, "grad_norm": 1.0} for i in range(2)]
    records.append({"step": 20, "kind": "validation", "nll/text": 1.25 + seed})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_the_page_has_every_variant_and_leaves_out_what_was_not_measured(tmp_path):
    (tmp_path / runner.PLAN_FILE).write_text(json.dumps({"limit": 3, "settings": ["--config.train.steps=2"]}))
    for variant, score in (("full", 0.75), ("no_swin", 0.5)):
        for seed in range(2):
            write_run(tmp_path, variant, seed, score)
    made = page.write_page(tmp_path)
    text, record = made.read_text(), json.loads((tmp_path / "ablation.json").read_text())
    assert record["variants"]["no_swin"]["differences"]["t2i"]["mean"] == -25
    for words in ("75.0", "-25.0", "1.750", "a &lt;red&gt; circle 0", "page/no_swin-0.png", "--config.train.steps=2"):
        assert words in text
    assert {v["says"] for v in page.verdicts(record["variants"])} == {"agrees", "disagrees"}
    assert sorted(p.name for p in (tmp_path / "page").iterdir()) == [
        *("full-0.png", "nll-image.png", "nll-speech.png", "nll-text.png", "no_swin-0.png", "perceptual.png")
    ]


def test_damaged_and_missing_runs_are_named(tmp_path):
    with pytest.raises(AblationError, match="no finished run"):
        summary.read_runs(tmp_path)
    folder = runner.workdir(tmp_path, "full", 0)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "evaluation.json").write_text('{"systems"')
    with pytest.raises(AblationError, match="is damaged"):
        summary.read_runs(tmp_path)
