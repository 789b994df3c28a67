"""The stability probe: its arms, its runs through the ablation's runner, its numbers and its page."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_data
from made_runs import made_run, write_metrics

from ar_omni_jax.ablation import command, probe, runner, spikes, stability_page
from ar_omni_jax.ablation.arms import ARMS, RATES, USUAL
from ar_omni_jax.ablation.runner import AblationError, Plan
from ar_omni_jax.ablation.study import STABILITY
from ar_omni_jax.config import load_config


def test_arms_change_what_keeps_training_stable_and_the_rates_alone():
    usual = load_config("configs/toyworld.py")
    guarded = load_config("configs/stability.py:guarded_x1")
    assert (guarded.model, guarded.data, guarded.loss) == (usual.model, usual.data, usual.loss)
    for rate in RATES:
        plain = load_config(f"configs/stability.py:plain_x{rate}")
        assert (plain.model.norm_placement, plain.model.qk_norm, plain.loss.z_loss) == ("pre", False, 0)
        assert plain.optimizer.peak_lr == pytest.approx(rate * usual.optimizer.peak_lr)
        assert plain.optimizer.muon_lr == pytest.approx(rate * usual.optimizer.muon_lr)
        for name, differs in (
            ("swin_norm", ("model", "norm_placement")),
            ("qk_norm", ("model", "qk_norm")),
            ("z_loss", ("loss", "z_loss")),
        ):
            alone = load_config(f"configs/stability.py:{name}_x{rate}").to_dict()
            section, key = differs
            assert alone[section].pop(key) == usual[section][key]
            other = plain.to_dict()
            other[section].pop(key)
            assert alone == other
    assert set(USUAL) < set(ARMS)
    with pytest.raises(Exception, match="unknown arm 'plain'"):
        load_config("configs/stability.py:plain")


DONE = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(parents=True)"


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "dataset.json").write_text("{}")
    return Plan(tmp_path / "packed", tmp_path / "none.jsonl", ("plain_x1", "guarded_x1"), seeds=1, study=STABILITY)


def test_runs_are_trained_alone_and_kept(plan, tmp_path, monkeypatch, capsys):
    words = runner.commands(plan, tmp_path, "plain_x1", 0)
    assert len(words) == 1 and "ar_omni_jax.main" in words[0]
    assert any(word.endswith("configs/stability.py:plain_x1") for word in words[0])

    def commands(plan, output, variant, seed):
        return [[sys.executable, "-c", DONE, str(runner.workdir(output, variant, seed))]]

    monkeypatch.setattr(runner, "commands", commands)
    runner.run_all(plan, tmp_path / "out")
    assert capsys.readouterr().out.count("==>") == 2
    runner.run_all(plan, tmp_path / "out")
    assert "==>" not in capsys.readouterr().out
    (tmp_path / "test.jsonl").write_text("{}\n")
    other = Plan(tmp_path / "packed", tmp_path / "test.jsonl", ("full",), seeds=1)
    with pytest.raises(AblationError, match="another kind"):
        runner.run_all(other, tmp_path / "out")


def test_arms_are_compared_with_plain_at_the_same_rate_and_seeds():
    steps = [1.0] * 40
    spiky = [1.0] * 26 + [8.0, 1.0] * 7
    runs = {
        "plain_x1": [made_run(0, norms=steps, held_out=[1.0])],
        "plain_x10": [made_run(seed, norms=spiky, held_out=[2.0 + 0.1 * seed]) for seed in range(3)],
        "guarded_x10": [made_run(seed, norms=steps, held_out=[1.0 + 0.1 * seed]) for seed in range(2)],
    }
    found = probe.summarize(runs)
    against = found["guarded_x10"]["against_plain"]
    assert found["plain_x10"]["against_plain"] == {}
    assert against["held_out"]["mean"] == pytest.approx(-1) and against["held_out"]["says"] == "better"
    assert against["spikes"]["seeds"] == [-7, -7] and against["spikes"]["says"] == "better"
    assert against["largest"]["mean"] == pytest.approx(1 / 8)
    assert against["jumps"]["says"] == against["skipped"]["says"] == "not decided"  # the same: no difference


def test_one_spike_in_every_seed_may_be_chance():
    once = [1.0] * 30 + [8.0] + [1.0] * 9
    runs = {"plain_x1": [made_run(seed, norms=once) for seed in range(2)]}
    runs["guarded_x1"] = [made_run(seed, norms=[1.0] * 40) for seed in range(2)]
    spikes = probe.summarize(runs)["guarded_x1"]["against_plain"]["spikes"]
    chance = 1.96 * 2**0.5 / 2  # Poisson: two events in two seeds
    assert (spikes["mean"], spikes["says"]) == (-1, "not decided") and spikes["high"] == pytest.approx(-1 + chance)


def without_numbers(run, first):
    """Its steps from record `first` on are skipped, as the training writes them."""
    for record in run.train[first:]:
        del record["grad_norm"], record["weighted_nll"]
        record["skipped"] = 1.0
    return run


def test_an_arm_that_diverges_is_worse_than_any_number():
    numbers = {"norms": [1.0] * 40, "losses": [2.0] * 40}
    lost = [without_numbers(made_run(seed, **numbers, held_out=[2.0, None]), 35) for seed in range(3)]
    sound = [made_run(seed, norms=[2.0] * 40, losses=[2.0] * 40, held_out=[2.0, 3.0 + 0.1 * seed]) for seed in range(3)]
    against = probe.summarize({"plain_x1": lost, "guarded_x1": sound})["guarded_x1"]["against_plain"]
    assert against["largest"] == against["held_out"] == {"lost": [0, 3], "says": "better"}
    found = spikes.events(lost[0])
    assert (found["spikes"], found["jumps"], found["skipped"], found["largest"]) == (1, 1, 5, None)
    against = probe.summarize({"plain_x1": sound, "guarded_x1": lost})["guarded_x1"]["against_plain"]
    assert against["largest"]["says"] == against["held_out"]["says"] == "worse"
    # One of three plain runs is lost: the two others do not speak for the arm.
    mixed = {"plain_x1": [lost[0], *sound[1:]], "guarded_x1": sound}
    assert probe.summarize(mixed)["guarded_x1"]["against_plain"]["held_out"] == {"lost": [0, 1], "says": "not decided"}
    assert spikes.stability(lost)["largest"] is None


def test_a_run_that_ends_without_a_number_is_counted_not_averaged():
    lost, kept = made_run(0, norms=[1.0] * 30, held_out=[2.0, None]), made_run(1, norms=[1.0] * 30, held_out=[2.0, 1.5])
    row = probe.summarize({"plain_x1": [lost, kept]})["plain_x1"]
    assert row["without_number"] == 1 and row["held_out"]["seeds"] == [1.5]
    assert row["runs"][0]["by_modality"]["text"] is None


def write_probe(output):
    """The files of four finished runs."""
    output.mkdir(exist_ok=True)
    (output / runner.PLAN_FILE).write_text(json.dumps({"study": "stability", "settings": []}))
    spiky = [1.0] * 26 + [70.5, 1.0] * 7
    for name, norms, held_out in (("plain_x3", spiky, [2.5, None]), ("guarded_x3", [1.0] * 40, [2.5, 1.25])):
        for seed in range(2):
            folder = runner.workdir(output, name, seed)
            write_metrics(folder, [2.0] * 40, norms, held_out)
            (folder / runner.TRAINED).write_text("{}")


def test_what_is_kept_makes_the_same_page_without_speeds(tmp_path, capsys):
    output, kept = tmp_path / "out", tmp_path / "kept"
    write_probe(output)
    metrics = runner.workdir(output, "plain_x3", 0) / "metrics.jsonl"
    first, *rest = metrics.read_text().splitlines()
    first = json.dumps(json.loads(first) | {"tokens_per_second/all": 3.0, "nll_task/asr": 1.0})
    metrics.write_text("\n".join([first, *rest]) + "\n")
    stability_page.write_page(output)
    words = ["--output", str(output), "--keep", str(kept)]
    assert command.run_command(STABILITY, "", stability_page.write_page, words) == 0
    assert "kept 4 runs" in capsys.readouterr().out
    stability_page.write_page(kept)
    assert (kept / "index.html").read_text() == (output / "index.html").read_text()
    assert (kept / "stability.json").read_text() == (output / "stability.json").read_text()
    records = (runner.workdir(kept, "plain_x3", 0) / "metrics.jsonl").read_text()
    assert len(records.splitlines()) == 42 and "nll/text" in records
    assert "tokens_per_second" not in records and "nll_task" not in records
    metrics.write_text("[1]\n{}\n")
    assert command.run_command(STABILITY, "", stability_page.write_page, words) == 1
    assert f"error: {metrics} is damaged" in capsys.readouterr().err


def test_the_page_shows_arms_that_are_there(tmp_path):
    write_probe(tmp_path)
    text = stability_page.write_page(tmp_path).read_text()
    record = json.loads((tmp_path / "stability.json").read_text())
    assert list(record["arms"]) == ["plain_x3", "guarded_x3"]
    assert record["arms"]["guarded_x3"]["against_plain"]["spikes"]["says"] == "better"
    for words in ("70.50", "no number in 2", "1.250", "Rates × 3", "page/losses.png", "page/gradient-norms.png"):
        assert words in text
    assert "Rates × 10" not in text and (tmp_path / "page" / "losses.png").stat().st_size > 0


def test_the_command_names_its_arms_and_refuses_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        command.parse_arguments(STABILITY, "about", ["--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in ARMS) and "--limit" not in told
    (tmp_path / "packed").mkdir()
    words = [f"--run={tmp_path}", f"--output={tmp_path / 'out'}", "--variants=full"]
    assert command.run_command(STABILITY, "about", stability_page.write_page, words) == 1
    assert "unknown variants full" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.run_command(STABILITY, "about", stability_page.write_page, [f"--output={tmp_path / 'out'}"])
    assert "--run is needed" in capsys.readouterr().err


def test_the_page_alone_needs_no_data(tmp_path, monkeypatch, capsys):
    """The words that a finished run starts its page with are understood; the main job's folder may be gone."""
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    words = command.page_command(STABILITY, SimpleNamespace(output=tmp_path / "out"))
    assert words[1:3] == ["-m", "ar_omni_jax.ablation.stability"]
    assert command.run_command(STABILITY, "about", lambda output: output / "index.html", words[3:]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "index.html")


@pytest.mark.slow
def test_one_command_trains_arms_and_writes_the_page_once(tmp_path):
    tiny_data.make_packed(tmp_path, length=16, documents=20)
    tokenizers = tiny_data.make_tokenizers(tmp_path / "tokenizers")
    words = [sys.executable, "-m", "ar_omni_jax.ablation.stability", f"--run={tmp_path}", f"--output={tmp_path}/out"]
    words += ["--variants=plain_x10", "--seeds=1", f"--config.data.tokenizers={tokenizers}", "--config.data.length=16"]
    words += ["--config.loss.perceptual_weight=0", "--config.train.eval_batches=1", "--config.train.steps=2"]
    sizes = {"num_layers": 1, "d_model": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "d_ff": 16}
    words += [f"--config.model.{name}={value}" for name, value in sizes.items()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    root = Path(__file__).resolve().parents[2]

    def told():
        done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "run 1 of 1: plain_x10, seed 0" in told()
    row = json.loads((tmp_path / "out" / "stability.json").read_text())["arms"]["plain_x10"]
    assert row["held_out"]["mean"] > 0 and f"{row['held_out']['mean']:.3f}" in (tmp_path / "out/index.html").read_text()
    records = (tmp_path / "out/runs/plain_x10/seed-0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in records if '"train"' in line] == [1, 2]  # every step is looked at
    assert "==>" not in told()
