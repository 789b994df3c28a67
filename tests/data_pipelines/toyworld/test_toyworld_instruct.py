"""Dialogues for instruction tuning: true to their scenes, of the right split, and nothing else changed."""

import collections
import hashlib
import json
import random
import re

import numpy as np
import pytest

from ar_omni_jax.documents import document_from_json
from ar_omni_jax.templates import render
from data_pipelines.toyworld.__main__ import main
from data_pipelines.toyworld.build import build_dialogues
from data_pipelines.toyworld.documents import VOICES, make_plan, split_sizes
from data_pipelines.toyworld.instruct import ASSISTANT, KINDS, ONE_SHOT, change, make_dialogue_plan
from data_pipelines.toyworld.language import NUMBERS, PLACES, parse_caption
from data_pipelines.toyworld.replies import answers_grammar
from data_pipelines.toyworld.scene import Scene, random_scene_of_split, split_of

SIZE = 400


@pytest.fixture(scope="module")
def plan():
    return make_dialogue_plan(SIZE, seed=1)


@pytest.fixture(scope="module")
def dialogues(plan):
    return [record for rows in plan.records.values() for record in rows if record["task"].startswith("chat")]


def digest(plan):
    jobs = [repr(job) for job in (*plan.images, *plan.speech)]
    return hashlib.sha256(json.dumps([plan.records, jobs]).encode()).hexdigest()[:16]


def test_the_main_jobs_world_is_what_it_was():
    assert digest(make_plan(40, 5, 0.5)) == "3a4a4f8e5b0d7fdd"


def test_a_plan_is_a_function_of_size_and_seed(plan):
    assert digest(make_dialogue_plan(SIZE, seed=1)) == digest(plan)
    assert digest(make_dialogue_plan(SIZE, seed=2)) != digest(plan)


def test_every_kind_is_there_as_often_as_it_should_be(plan, dialogues):
    assert {split: sum("kind" in r["meta"] for r in rows) for split, rows in plan.records.items()} == split_sizes(SIZE)
    counts = collections.Counter(record["meta"]["kind"] for record in dialogues)
    for kind, share in KINDS.items():
        assert counts[kind] / len(dialogues) == pytest.approx(share, abs=0.07)
    others = [r["task"] for rows in plan.records.values() for r in rows if "kind" not in r["meta"]]
    assert set(others) == set(ONE_SHOT) and len(others) / SIZE == pytest.approx(0.25, abs=0.06)
    rounds = collections.Counter(len(record["turns"]) // 2 for record in dialogues)
    assert set(rounds) == {1, 2, 3} and min(rounds.values()) > 50
    assert not any("kind" not in r["meta"] for rows in make_dialogue_plan(20, 1, 0.0).records.values() for r in rows)


def test_media_are_made_once_and_all_of_them_are_mentioned(plan):
    paths = [job.path for job in (*plan.images, *plan.speech)]
    parts = [p for rows in plan.records.values() for r in rows for t in r["turns"] for p in t["parts"]]
    assert len(set(paths)) == len(paths)
    assert set(paths) == {value for part in parts for kind, value in part.items() if kind != "text"}


def test_scenes_and_voices_stay_in_their_split(plan):
    for job in plan.images:
        assert split_of(job.scene) == job.path.removeprefix("images/").split("-")[0]
    for job in plan.speech:
        if "assistant-" in job.path:
            assert (job.voice, job.words_per_minute, job.pitch) == tuple(ASSISTANT.values())
        else:
            assert job.voice in VOICES[job.path.removeprefix("speech/").split("-")[0]]
    assert ASSISTANT["voice"] in VOICES["train"], "the test's user is heard in training"


def test_every_document_fits_its_template(plan):
    for rows in plan.records.values():
        for record in rows:
            assert render(document_from_json(record), "paper")


def last_words(record):
    """What the last answer says: written, or the transcript of its utterance."""
    (part,) = record["turns"][-1]["parts"]
    said = {facts["path"]: facts["transcript"] for facts in record["meta"].get("speech", [])}
    return part["text"] if "text" in part else said[part["speech"]]


def last_question(record):
    part = record["turns"][-2]["parts"][-1]
    said = {facts["path"]: facts["transcript"] for facts in record["meta"].get("speech", [])}
    return part["text"] if "text" in part else said[part["speech"]]


def answer_by_looking(question, scene):
    """The right words for a question about a scene, found out without the code that asks."""
    if question.startswith("how many"):
        return {NUMBERS[len(scene.objects) - 1]}
    words = question.split()
    fit = [item for item in scene.objects if {item.color, item.shape} & set(words)]
    fit = [item for item in fit if all(w in (item.color, item.shape) for w in words if w in (*COLORS, *SHAPES))]
    (item,) = fit
    if question.startswith("what color"):
        return {item.color}
    if question.startswith("what shape"):
        return {item.shape}
    if question.startswith("where"):
        return set(PLACES[item.position])
    return {"small", "little"} if item.size == "small" else {"large", "big"}


COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross")


def test_answers_are_true_and_accepted(dialogues):
    kinds = collections.Counter()
    for record in dialogues:
        meta = record["meta"]
        if meta["kind"] == "chat_image" or meta["about"] == "facts":
            continue
        said, truths = last_words(record), answer_by_looking(last_question(record), Scene.from_json(meta["scene"]))
        assert said in meta["accepted"] and said == meta["accepted"][0]
        assert any(re.search(rf"\b{truth}\b", said) for truth in truths), (last_question(record), said)
        for wording in meta["accepted"]:
            assert any(re.search(rf"\b{t.removeprefix('at the ').removeprefix('in the ')}\b", wording) for t in truths)
        kinds[meta["question"]] += 1
    assert set(kinds) == {"color", "place", "size", "shape", "count"} and min(kinds.values()) > 15


def test_no_answer_stands_in_the_questions_before_it(dialogues):
    """Nobody who has not seen the picture can tell: no earlier turn names the answer of a question about one."""
    several = 0
    for record in dialogues:
        if record["meta"]["kind"] != "chat_text" or len(record["turns"]) < 4:
            continue
        scene, asked = Scene.from_json(record["meta"]["scene"]), [t["parts"][-1]["text"] for t in record["turns"]]
        question, before = asked[-2], " ".join(asked[:-2])
        if question.startswith(("what color", "what shape")):
            assert asked[-1] not in before.split()
        elif len(scene.objects) == 1:
            assert question.split()[0:2] not in [q.split()[0:2] for q in asked[:-2:2]]
        several += 1
    assert several > 15


def test_pictures_show_what_was_asked_for(plan, dialogues):
    drawn = {job.path: job.scene for job in plan.images}
    edits = 0
    for record in (r for r in dialogues if r["meta"]["kind"] == "chat_image"):
        before = None
        transcripts = {facts["path"]: facts["transcript"] for facts in record["meta"]["speech"]}
        for user, answer in zip(record["turns"][::2], record["turns"][1::2], strict=True):
            text, picture = answer["parts"][0]["text"], drawn[answer["parts"][1]["image"]]
            assert transcripts[user["parts"][0]["speech"]] == text
            if before is None:
                assert parse_caption(text).objects == picture.objects
            else:
                (old,), (new,) = (set(a.objects) - set(b.objects) for a, b in ((before, picture), (picture, before)))
                kept = [name for name in old.ATTRIBUTES if getattr(old, name) == getattr(new, name)]
                assert len(kept) == 3 and len(before.objects) == len(picture.objects)
                edits += 1
            before = picture
        assert record["meta"]["scene"] == before.to_json()
    assert edits > 30


def test_a_change_leaves_colours_and_places_different():
    rng = random.Random(0)
    kinds = collections.Counter()
    for _ in range(200):
        scene = random_scene_of_split(rng, "train", count=2)
        made = change(scene, "train", rng)
        if made is None:
            assert scene.objects[0].shape == scene.objects[1].shape
            continue
        assert len({item.color for item in made.scene.objects}) == len({i.position for i in made.scene.objects}) == 2
        assert any(item.shape in made.request.split() for item in made.scene.objects)
        kinds[made.kind] += 1
    assert min(kinds.values()) > 20


def test_an_independent_recognizer_hears_every_spoken_answer(plan):
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("pocketsphinx")
    from ar_omni_jax.evaluation.recognizer import Recognizer
    from data_pipelines.toyworld.espeak import SAMPLE_RATE, Synthesizer

    recognizer = Recognizer(answers_grammar())
    said = [job for job in plan.speech if "assistant-" in job.path]
    assert len(said) > 20
    for job in said:
        wave = Synthesizer().speak(job.text, job.voice, job.words_per_minute, job.pitch)
        assert recognizer.transcribe(np.asarray(wave, np.float32), SAMPLE_RATE) == job.text


def test_the_command_makes_dialogues(tmp_path, capsys):
    pytest.importorskip("espeakng_loader")
    assert main([f"--output={tmp_path}/w", "--size=8", "--dialogues", "--workers=1", "--one_shot_share=1"]) == 0
    info = json.loads((tmp_path / "w" / "dataset.json").read_text())
    assert info["dataset"] == "toyworld dialogues" and info["complete"] and info["scenes"]["train"] == 4
    records = [json.loads(line) for s in VOICES for line in (tmp_path / "w" / f"{s}.jsonl").read_text().splitlines()]
    assert len(records) == 16
    for record in records:
        assert all((tmp_path / "w" / v).is_file() for t in record["turns"] for p in t["parts"] for v in media(p))
        assert all(facts["seconds"] > 0.3 for facts in record["meta"].get("speech", []))
    capsys.readouterr()
    assert main([f"--output={tmp_path}/w", "--size=8"]) == 1
    assert "already holds a toy world with dataset='toyworld dialogues'" in capsys.readouterr().err
    for arguments in (["--dialogues", "--spoken_share=1"], ["--one_shot_share=1"]):
        with pytest.raises(SystemExit):
            main([f"--output={tmp_path}/x", "--size=8", *arguments])
        assert "--dialogues" in capsys.readouterr().err
    with pytest.raises(Exception, match="one_shot_share=2"):
        build_dialogues(tmp_path / "y", 8, one_shot_share=2)


def media(part):
    return [value for kind, value in part.items() if kind != "text"]
