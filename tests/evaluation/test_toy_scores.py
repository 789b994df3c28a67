"""Scores of whole systems on the toy world's files: the truth is perfect, chance is not, and rates are jiwer's."""

import random

import jiwer
import numpy as np
import pytest
import soundfile

from ar_omni_jax.documents import document_from_json
from ar_omni_jax.evaluation import toy_tasks
from ar_omni_jax.evaluation.file_answer import FileAnswer
from ar_omni_jax.evaluation.measures.toy_attributes import ToyAttributes
from ar_omni_jax.evaluation.measures.word_error_rate import WordErrorRate
from ar_omni_jax.evaluation.results import table
from ar_omni_jax.evaluation.scoring import Scoring
from ar_omni_jax.evaluation.systems import KnownSystem, chance_system, truth_system
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


class Listener:
    """Hears what the tone of that length stands for."""

    name, sample_rate = "listener", 16000

    def __init__(self, documents):
        self.said = {100 + k: toy_tasks.truth_text(d) for k, d in enumerate(documents["tts"])}

    def transcribe_all(self, waves):
        return [self.said[len(wave)] for wave in waves]


@pytest.fixture
def score(world, tmp_path):
    """system -> {task: result}."""
    root, documents = world
    measures = {"caption": [ToyAttributes("caption")], "t2i": [ToyAttributes("t2i")]}
    measures |= {"asr": [WordErrorRate("words")], "tts": [WordErrorRate("words", Listener(documents))]}
    return Scoring(documents, measures, dict.fromkeys(documents, ""), tmp_path, 16000).score


def test_the_truth_is_perfect_and_another_documents_answer_is_not(world, score):
    root, documents = world
    truth, chance = score(truth_system(root)), score(chance_system(root))
    assert {t: r.score for t, r in truth.items()} == {"caption": 100, "t2i": 100, "asr": 0, "tts": 0}
    assert set(truth["t2i"].details.values()) == {100.0}
    for task in ("caption", "t2i"):
        assert chance[task].score < 70
        assert chance[task].low <= chance[task].score <= chance[task].high
    for task in ("asr", "tts"):
        said = [toy_tasks.truth_text(d) for d in documents[task]]
        assert chance[task].score == pytest.approx(100 * jiwer.wer(said, said[1:] + said[:1]))


def test_no_answer_is_all_wrong(score):
    results = score(KnownSystem("silent", lambda task, rows: [FileAnswer("") for _ in rows]))
    assert {t: r.score for t, r in results.items()} == {"caption": 0, "t2i": 0, "asr": 100, "tts": 100}
    assert results["tts"].notes == ["12 of 12 answers are empty or not heard and count as 100 %"]


def test_titles_are_those_of_the_report_page(world, score):
    for task, result in score(truth_system(world[0])).items():
        assert (result.title, result.unit, result.higher_is_better) == toy_tasks.MEASURES[task]


def test_the_table_has_a_row_a_system_and_a_column_a_task(world, score):
    results = score(truth_system(world[0]))
    del results["tts"]
    lines = table({"files": results, "nothing": {}}, toy_tasks.JUDGED_TASKS).splitlines()
    assert lines[0].count("|") == 5 and lines[2].startswith("| files | 100.0 % [100.0, 100.0] |")
    assert lines[3] == "| nothing | – | – | – |"
