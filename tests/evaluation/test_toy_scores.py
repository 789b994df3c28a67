"""Scores of whole systems on files: the truth is perfect, chance is not, and rates are jiwer's."""

import random

import jiwer
import numpy as np
import pytest
import soundfile

from ar_omni_jax.documents import document_from_json
from ar_omni_jax.evaluation import toy_tasks
from ar_omni_jax.inference import Answer
from data_pipelines.toyworld import caption, draw, random_scene

COUNT = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, documents by task): scenes as PNG, and tones whose length stands for what is said."""
    root, rng = tmp_path_factory.mktemp("world"), random.Random(3)
    documents = {task: [] for task in toy_tasks.JUDGED_TASKS}
    for k in range(COUNT):
        scene = random_scene(rng)
        draw(scene).save(root / f"{k}.png")
        soundfile.write(root / f"{k}.wav", np.full(100 + k, 0.5), 16000)
        text = caption(scene, rng)
        image, speech = [{"image": f"{k}.png"}], [{"speech": f"{k}.wav"}]
        shapes = {"caption": (image, text), "t2i": (text, image), "asr": (speech, text), "tts": (text, speech)}
        for task, sides in shapes.items():
            turns = [[{"text": side}] if isinstance(side, str) else side for side in sides]
            record = {"id": f"{task}-{k}", "task": task, "turns": turns, "meta": {"scene": scene.to_json()}}
            documents[task].append(document_from_json(record))
    return root, documents


def recognizer(documents):
    """Hears what the tone of that length stands for."""
    said = {100 + k: toy_tasks.truth_text(d) for k, d in enumerate(documents["tts"])}
    return lambda wave: said[len(wave)]


def test_the_truth_is_perfect_and_another_documents_answer_is_not(world):
    root, documents = world
    truth, _ = toy_tasks.judge(toy_tasks.truth_system(root), documents, recognizer(documents))
    chance, _ = toy_tasks.judge(toy_tasks.chance_system(root), documents, recognizer(documents))
    assert {t: r.score for t, r in truth.items()} == {"caption": 100, "t2i": 100, "asr": 0, "tts": 0}
    assert set(truth["t2i"].details.values()) == {100.0}
    for task in ("caption", "t2i"):
        assert chance[task].score < 70
        assert chance[task].low <= chance[task].score <= chance[task].high
    for task in ("asr", "tts"):
        said = [toy_tasks.truth_text(d) for d in documents[task]]
        assert chance[task].score == pytest.approx(100 * jiwer.wer(said, said[1:] + said[:1]))


def test_no_answer_is_all_wrong(world):
    _, documents = world
    silent = lambda task, rows: [Answer("", [], [], np.zeros(0, np.int32)) for _ in rows]  # noqa: E731
    results, _ = toy_tasks.judge(silent, documents, recognizer(documents))
    assert {t: r.score for t, r in results.items()} == {"caption": 0, "t2i": 0, "asr": 100, "tts": 100}


def test_the_table_has_a_row_a_system_and_a_column_a_task(world):
    root, documents = world
    results, _ = toy_tasks.judge(toy_tasks.truth_system(root), documents, None)
    assert "tts" not in results  # nobody listens
    lines = toy_tasks.table({"files": results}).splitlines()
    assert lines[0].count("|") == 5 and lines[2].startswith("| files | 100.0 % [100.0, 100.0] |")
