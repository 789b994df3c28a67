"""Scores of dialogues: the truth is perfect, another dialogue's answer is chance, no answer is nothing."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from ar_omni_jax.documents import DocumentError, document_from_json
from ar_omni_jax.evaluate import main
from ar_omni_jax.evaluation import toy_judges, toy_tasks
from ar_omni_jax.evaluation.dialogue_kinds import DIALOGUE_TASKS, judged_as
from ar_omni_jax.evaluation.file_answer import FileAnswer
from ar_omni_jax.evaluation.manifest import load_documents, truth_text
from ar_omni_jax.evaluation.measures.selection import select
from ar_omni_jax.evaluation.record_file import RecordError
from ar_omni_jax.evaluation.scoring import Scoring, folder_of
from ar_omni_jax.evaluation.systems import TRUTH, KnownSystem, chance_system, next_of_its_kind, truth_system
from data_pipelines.toyworld.build import build_dialogues
from data_pipelines.toyworld.drawing import draw
from data_pipelines.toyworld.scene import Scene

SIZE = 90  # dialogues; the test split has 22 of them


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, documents by kind) of the training split: real pictures and real speech."""
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("pocketsphinx")
    folder = tmp_path_factory.mktemp("dialogues") / "toy"
    build_dialogues(folder, SIZE, seed=3, workers=1, progress=False, one_shot_share=0.0)
    return folder, load_documents(folder / "train.jsonl", 0, DIALOGUE_TASKS)


@pytest.fixture
def score(world, tmp_path):
    """system -> {kind: result}, judged as the command does without flags."""
    root, documents = world
    measures = select(documents, (), root)
    return Scoring(documents, measures, dict.fromkeys(documents, ""), tmp_path, 16000).score


def test_the_truth_is_perfect(world, score):
    truth = score(truth_system(world[0]))
    assert {kind: result.score for kind, result in truth.items()} == dict.fromkeys(DIALOGUE_TASKS, 100.0)
    changes = truth["chat_image"].details
    assert changes["changes made"] == changes["drawn"] == changes["changed"] == 100
    assert 50 < changes["left as it was"] < 90
    for kind, result in truth.items():
        assert (result.title, result.unit, result.higher_is_better) == toy_tasks.MEASURES[kind]


def test_kept_judgements_are_read_back_and_one_without_its_entries_is_named(world, score, tmp_path):
    truth = score(truth_system(world[0]))
    assert score(truth_system(world[0])) == truth
    for kind, name, key in (("chat_image", "attributes", "unchanged_score"), ("chat_text", "correct", "right")):
        path = folder_of(tmp_path, TRUTH) / kind / f"{name}.jsonl"
        lines = path.read_text().splitlines()
        number = next(k for k, line in enumerate(lines) if f'"{key}"' in line)
        whole, record = lines[number], json.loads(lines[number])
        lines[number] = json.dumps({k: v for k, v in record.items() if k != key})
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(RecordError, match=rf"{name}\.jsonl: line {number + 1} is damaged \(it has no {key}\)"):
            score(truth_system(world[0]))
        path.write_text("\n".join([*lines[:number], whole, *lines[number + 1 :]]) + "\n")


def test_another_answer_to_the_same_kind_of_question_is_chance(world, score):
    root, documents = world
    chance = score(chance_system(root))
    for kind in ("chat_text", "chat_speech", "chat_spoken"):
        rows = documents[kind]
        right = []
        for k, other in enumerate(next_of_its_kind([d.meta["question"] for d in rows])):
            asked = [d.meta["question"] for d in (rows[k], rows[other])]
            assert len(set(asked)) == 1 or asked.count(asked[0]) == 1
            right.append(truth_text(rows[other]) in rows[k].meta["accepted"])
        assert chance[kind].score == pytest.approx(100 * np.mean(right))
        assert chance[kind].score < 60
    assert 15 < chance["chat_image"].score < 45 and chance["chat_image"].details["changes made"] < 40


def test_no_answer_is_all_wrong(score):
    results = score(KnownSystem("silent", lambda kind, rows: [FileAnswer("") for _ in rows]))
    assert {kind: result.score for kind, result in results.items()} == dict.fromkeys(DIALOGUE_TASKS, 0.0)
    assert results["chat_image"].details["changes made"] == 0
    assert "answers have no picture" in results["chat_image"].notes[0]
    assert "empty or not heard" in results["chat_spoken"].notes[0]


def test_next_of_its_kind():
    assert next_of_its_kind([None, None, None]) == [1, 2, 0]
    assert next_of_its_kind(["a", "b", "a", "c"]) == [2, 2, 0, 0]
    assert next_of_its_kind(["a"]) == [0]


def test_dialogues_are_found_by_what_was_asked_and_answered(world):
    _, documents = world
    counts = {kind: len(rows) for kind, rows in documents.items()}
    assert set(counts) == set(DIALOGUE_TASKS) and sum(counts.values()) == SIZE - 2 * 22
    for kind, rows in documents.items():
        assert {judged_as(d) for d in rows} == {kind} == {d.meta["kind"] for d in rows}
    assert judged_as(dataclasses.replace(rows[0], turns=rows[0].turns[:1])) == rows[0].task


@pytest.mark.parametrize(
    ("text", "right"),
    [("Red.", True), ("it is  red", True), ("reddish", False), ("red blue", False), ("", False), ("...", False)],
)
def test_wordings(text, right):
    assert toy_judges.answer_right(text, ["red", "it is red"]) is right


def test_a_change_is_made_when_the_object_is_as_asked():
    def scene(color, other="blue"):
        item = {"shape": "circle", "color": color, "size": "large", "position": "top"}
        second = {"shape": "cross", "color": other, "size": "small", "position": "left"}
        return {"objects": [item, second], "background": "white"}

    before, truth = scene("red"), scene("green")
    made = toy_judges.read_scene(np.asarray(draw(Scene.from_json(truth))))
    assert toy_judges.change_made(made, truth, before)
    assert toy_judges.change_made(Scene.from_json(scene("green", "orange")), truth, before)
    assert not toy_judges.change_made(Scene.from_json(before), truth, before)
    assert toy_judges.compare(before, truth)["attributes"] == 7 / 8


def test_dialogues_without_a_known_answer_are_refused(tmp_path):
    turns = [[{"text": "what color is it"}], [{"text": "red"}]]
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"id": "a", "task": "chat", "turns": turns}) + "\n")
    with pytest.raises(DocumentError, match=r"line 1: .*meta\.accepted.*--dialogues"):
        load_documents(path, 0, DIALOGUE_TASKS)
    with pytest.raises(DocumentError, match="no document of task caption"):
        load_documents(path, 0)
    path.write_text(json.dumps({"id": "a", "task": "chat", "turns": []}) + "\n")
    with pytest.raises(DocumentError, match="line 1: 'turns' must be"):
        load_documents(path, 0, DIALOGUE_TASKS)


def test_the_command_knows_the_kinds(world, tmp_path, capsys):
    """As far as the checkpoint, which is not there."""
    for task in ("dialogues", "chat_image"):
        assert main([f"--checkpoint={tmp_path}", f"--data={world[0]}/test.jsonl", f"--task={task}"]) == 1
        assert "holds no checkpoint" in capsys.readouterr().err


def test_questions_are_of_many_kinds(world):
    _, documents = world
    kinds = collections.Counter(d.meta["question"] for rows in documents.values() for d in rows)
    assert len(kinds) >= 8
    document = document_from_json({"id": "x", "task": "chat", "turns": [[{"text": "a"}]]})
    assert judged_as(document) == "chat"
