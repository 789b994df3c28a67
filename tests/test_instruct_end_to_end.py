"""Instruction tuning in miniature, by its own commands: dialogues → tokens → rows → two steps → scores → page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
SMALL = [
    *("--config.model.num_layers=1", "--config.model.d_model=32", "--config.model.d_ff=64"),
    *("--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.model.head_dim=16"),
    *("--config.data.batch_size=2", "--config.train.steps=2", "--config.train.eval_every=1"),
    *("--config.train.log_every=1", "--config.train.eval_batches=1", "--config.train.sample_every=0"),
]


DOCUMENTS = ("--one_shot_share=1", "--seed=9")  # at least two of every kind in the test split


def run(*arguments, check=True):
    """A module's command in a process of its own, on one CPU device."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def train(config, folder, name, *more, check=True):
    """`name` is the run's folder; rows are those of the dialogues."""
    where = (f"--workdir={folder}/{name}", f"--config.data.path={folder}/packed", "--config.data.length=768")
    return run("ar_omni_jax.main", f"--config={config}", *where, *SMALL, *more, check=check)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Dialogues packed, a first stage of two steps, and a second that starts from it."""
    folder = tmp_path_factory.mktemp("instruct")
    run("data_pipelines.toyworld", "--dialogues", f"--output={folder}/toy", "--size=40", *DOCUMENTS)
    for split in ("train", "validation"):
        run(
            *("data_pipelines.build_shards", "--source=manifest", f"--input={folder}/toy/{split}.jsonl"),
            *(f"--output={folder}/shards", f"--split={split}"),
        )
    run("data_pipelines.pack_shards", f"--input={folder}/shards", f"--output={folder}/packed", "--length=768")
    train("configs/toyworld.py", folder, "first", "--config.data.mixture.text=0")
    return folder


@pytest.fixture(scope="module")
def tuned(work):
    return train("configs/instruct_toyworld.py", work, "train", f"--config.train.init_from={work}/first").stdout


def test_the_second_stage_starts_from_the_firsts_weights(tuned, work):
    assert f"weights from step 2 of {work}/first" in tuned
    losses = [json.loads(line) for line in (work / "train" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0]["step"] == 1 and losses[0]["perceptual"] > 0


def test_weights_of_another_shape_are_told_in_a_line(work):
    settings = (f"--config.train.init_from={work}/first", "--config.model.d_ff=48")
    done = train("configs/instruct_toyworld.py", work, "other", *settings, check=False)
    told = rf"config.train.init_from = {work}/first: the model needs .* of shape \[.*48.*\], found"
    assert done.returncode == 1 and re.search(told, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_both_stages_are_scored_and_shown(tuned, work):
    short = ("--limit=2", "--batch=2", "--max_seconds=0.5", "--max_text=8")
    for name, task, checkpoint, systems in (
        ("dialogues", "dialogues", "train", "chance,ceiling,truth"),
        ("dialogues_before", "dialogues", "first", ""),
        ("one_shot", "all", "train", "truth"),
        ("one_shot_before", "all", "first", ""),
    ):
        run(
            *("ar_omni_jax.evaluate", f"--checkpoint={work}/{checkpoint}", f"--data={work}/toy/test.jsonl"),
            *(f"--task={task}", f"--output={work}/evaluation/{name}", f"--systems={systems}", *short),
        )
    scores = json.loads((work / "evaluation" / "dialogues" / "evaluation.json").read_text())["systems"]
    assert set(scores["trained model"]) == {"chat_text", "chat_speech", "chat_spoken", "chat_image"}
    for task, result in scores["judges on the files"].items():
        assert result["score"] == 100, task
        assert scores["trained model"][task]["score"] < 60
    assert scores["tokenizers' ceiling"]["chat_image"]["score"] > 90
    assert scores["tokenizers' ceiling"]["chat_text"]["score"] == 100
    run("ar_omni_jax.evaluation.instruct_page", f"--run={work}")
    page = (work / "report" / "index.html").read_text()
    assert "before it" in page and "samples/chat_image-0-" in page
