"""The main job in miniature, by its own commands: files → tokens → rows → two steps → answers → scores → page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
SMALL = [
    *("--config.model.num_layers=1", "--config.model.d_model=32", "--config.model.d_ff=64"),
    *("--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.model.head_dim=16"),
    *("--config.data.batch_size=2", "--config.train.steps=2", "--config.train.eval_every=1"),
    *("--config.train.log_every=1", "--config.train.eval_batches=1", "--config.train.sample_every=0"),
]


def run(*arguments, check=True):
    """A module's command in a process of its own, on one CPU device."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    run("data_pipelines.toyworld", f"--output={folder}/toy", "--size=24")
    for split in ("train", "validation", "test"):
        run(
            *("data_pipelines.build_shards", "--source=manifest", f"--input={folder}/toy/{split}.jsonl"),
            *(f"--output={folder}/shards", f"--split={split}"),
        )
    run("data_pipelines.pack_shards", f"--input={folder}/shards", f"--output={folder}/packed", "--length=512")
    run(
        *("ar_omni_jax.main", "--config=configs/toyworld.py", f"--workdir={folder}/train"),
        *(f"--config.data.path={folder}/packed", *SMALL),
    )
    return folder


@pytest.fixture(scope="module")
def evaluation(work):
    run(
        *("ar_omni_jax.evaluate", f"--checkpoint={work}/train", f"--data={work}/toy/test.jsonl", "--limit=3"),
        *(f"--output={work}/evaluation", "--batch=4", "--max_seconds=0.5", "--max_text=8"),
    )
    return json.loads((work / "evaluation" / "evaluation.json").read_text())


def test_the_tokenizers_carry_the_tasks_and_two_steps_do_not(evaluation):
    systems = evaluation["systems"]
    score = {name: {task: r["score"] for task, r in rows.items()} for name, rows in systems.items()}
    assert score["judges on the files"]["caption"] == 100 and score["judges on the files"]["asr"] == 0
    assert score["tokenizers' ceiling"]["caption"] == 100 and score["tokenizers' ceiling"]["asr"] == 0
    assert score["tokenizers' ceiling"]["t2i"] > 90
    assert score["tokenizers' ceiling"]["tts"] < 40
    for name in ("trained model", "untrained model"):
        assert score[name]["t2i"] < 60 and score[name]["asr"] > 50
    for rows in systems.values():
        for result in rows.values():
            assert result["low"] <= result["score"] <= result["high"]
            assert len(result["examples"]) == 3


def test_answers_are_files_that_other_programs_read(work, evaluation):
    assert np.asarray(Image.open(work / "evaluation" / "t2i" / "000.png")).shape == (64, 64, 3)
    record = json.loads((work / "evaluation" / "tts" / "000.json").read_text())
    wave, rate = soundfile.read(work / "evaluation" / "tts" / record["files"][0])
    codes = len(record["tokens"]) - 3  # <boa> … <eoa> <eos>
    assert rate == 16000 and len(wave) == 400 * codes and 0 < codes <= 20
    cut = ["speech part ended by its budget of 20 tokens"] if codes == 20 else []
    assert record["problems"] == cut


def test_the_report_page_shows_every_number_and_file_it_names(work, evaluation):
    run("ar_omni_jax.evaluation.report", f"--run={work}", f"--output={work}/report")
    page = (work / "report" / "index.html").read_text()
    data = json.loads((work / "report" / "report.json").read_text())
    for rows in data["systems"].values():
        for result in rows.values():
            assert f"{result['score']:.1f} %" in page
    assert {row["modality"] for row in data["losses"]} == {"text", "image", "speech"}
    for row in data["losses"]:
        assert 0 < row["unigram"] < 10 and f"{row['unigram']:.3f}" in page
    named = [
        s[key] for rows in data["samples"].values() for s in rows for key in s if key.endswith(("image", "speech"))
    ]
    assert len(named) > 6
    for name in [*named, "losses.png"]:
        assert name in page and (work / "report" / name).stat().st_size > 0


def test_the_ablation_trains_judges_and_writes_its_page_once(work):
    words = ["ar_omni_jax.ablation", f"--run={work}", f"--output={work}/ablation", "--limit=2", "--seeds=1"]
    words += ["--variants=full,plain", *SMALL]
    told = run(*words).stdout
    assert "run 1 of 2: full, seed 0" in told and "run 2 of 2: plain, seed 0" in told
    record = json.loads((work / "ablation" / "ablation.json").read_text())
    page = (work / "ablation" / "index.html").read_text()
    for row in record["variants"].values():
        for score in row["scores"].values():
            assert score["low"] <= score["mean"] <= score["high"] and f"{score['mean']:.1f}" in page
    assert set(record["variants"]["plain"]["differences"]) == {"caption", "t2i", "asr", "tts"}
    assert record["variants"]["plain"]["losses"]["perceptual"] in ([], [0.0])
    for name in ("nll-text.png", "perceptual.png", "full-0.png"):
        assert (work / "ablation" / "page" / name).stat().st_size > 0 and f"page/{name}" in page
    assert "==> run" not in run(*words).stdout  # nothing is done twice
    other = run(*words, "--config.train.steps=3", check=False)
    assert other.returncode == 1 and "settings was" in other.stderr and "give another --output" in other.stderr


def test_generate_writes_what_the_task_asks_for_and_depends_on_its_seed_alone(work):
    def ask(folder, seed):
        run(
            *("ar_omni_jax.generate", f"--checkpoint={work}/train", "--task=t2i", "--text=a large red circle"),
            *(f"--output={work}/{folder}", f"--seed={seed}"),
        )
        return np.asarray(Image.open(work / folder / "t2i.png"))

    first = ask("g0", 0)
    assert first.shape == (64, 64, 3)
    assert (first == ask("g1", 0)).all()
    assert (first != ask("g2", 1)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=tts", "--image=x.png"], "--task=tts takes --text; got image"),
        (["--task=asr", "--speech=nothing.wav"], "nothing.wav is not a file"),
        (["--task=dance", "--text=x"], "invalid choice: 'dance'"),
    ],
)
def test_generate_names_what_a_request_lacks(work, arguments, message):
    done = run("ar_omni_jax.generate", f"--checkpoint={work}/train", *arguments, check=False)
    assert done.returncode != 0 and message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_report_names_the_command_that_makes_what_is_missing(work, tmp_path):
    done = run("ar_omni_jax.evaluation.report", f"--run={tmp_path}", check=False)
    assert done.returncode == 1 and "metrics.jsonl is missing: train first" in done.stderr
    assert "Traceback" not in done.stderr
