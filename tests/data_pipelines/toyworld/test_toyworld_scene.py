"""Scenes, their pictures, and the split that each belongs to."""

import collections
import itertools
import math
import random

import numpy as np
import pytest

from data_pipelines.toyworld import draw
from data_pipelines.toyworld.documents import VOICES, make_plan, split_sizes
from data_pipelines.toyworld.scene import (
    BACKGROUNDS,
    COLORS,
    OBJECT_COUNT_WEIGHTS,
    POSITIONS,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    SceneObject,
    content_key,
    random_scene,
    random_scene_of_split,
    split_of,
)


def test_the_order_of_objects_does_not_matter():
    first = SceneObject("circle", "red", "large", "top left")
    second = SceneObject("cross", "blue", "small", "bottom")
    assert Scene((first, second), "white") == Scene((second, first), "white")
    scene = Scene((second, first), "gray")
    assert Scene.from_json(scene.to_json()) == scene


def test_scenes_follow_the_rules():
    rng = random.Random(0)
    counts = collections.Counter()
    for _ in range(2000):
        scene = random_scene(rng)
        counts[len(scene.objects)] += 1
        assert len({item.color for item in scene.objects}) == len(scene.objects)
        assert len({item.position for item in scene.objects}) == len(scene.objects)
    assert [counts[n] / 2000 for n in (1, 2, 3)] == pytest.approx([0.5, 0.35, 0.15], abs=0.04)


def test_a_split_is_a_function_of_the_objects_alone():
    rng = random.Random(1)
    counts = collections.Counter()
    for _ in range(3000):
        scene = random_scene(rng)
        assert {split_of(Scene(scene.objects, name)) for name in BACKGROUNDS} == {split_of(scene)}
        counts[split_of(scene)] += 1
    assert [counts[name] / 3000 for name in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    assert split_of(random_scene_of_split(rng, "test")) == "test"
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        random_scene_of_split(rng, "dev")


def test_colors_are_far_apart():
    for first, second in itertools.combinations([*COLORS.values(), *BACKGROUNDS.values()], 2):
        assert math.dist(first, second) > 80


def test_every_object_is_drawn_in_its_cell_and_no_two_alike():
    seen = set()
    for shape, size, position in itertools.product(SHAPES, SIZES, POSITIONS):
        scene = Scene((SceneObject(shape, "red", size, position),), "white")
        pixels = np.asarray(draw(scene)).astype(int)
        assert pixels.shape == (64, 64, 3)
        changed = np.argwhere((pixels != pixels[0, 0] if position != "top left" else pixels != pixels[-1, -1]).any(-1))
        row, column = divmod(POSITIONS.index(position), 3)
        low, high = changed.min(0), changed.max(0)
        assert (low >= (21 * row, 21 * column)).all() and (high <= (21 * row + 21, 21 * column + 21)).all()
        width = {"small": 12, "large": 20}[size]
        # Pillow paints the last line of a polygon too: an eighth of a pixel, which leaves a faint rim.
        assert (high - low + 1 >= width).all() and (high - low + 1 <= width + 1).all()
        seen.add(pixels.tobytes())
    assert len(seen) == len(SHAPES) * len(SIZES) * len(POSITIONS)


def _contents(record):
    scenes = [record["meta"]["scene"], *record["meta"].get("scenes", [])]
    return {content_key(Scene.from_json(scene)) for scene in scenes if scene}


def test_splits_share_no_scene_and_no_voice():
    plan = make_plan(600, seed=0)
    keys, voices, media = {}, {}, {}
    for split, records in plan.records.items():
        keys[split] = set().union(*map(_contents, records))
        voices[split] = {facts["voice"] for r in records for facts in r["meta"].get("speech", [])}
        media[split] = {v for r in records for t in r["turns"] for p in t["parts"] for k, v in p.items() if k != "text"}
        assert voices[split] == set(VOICES[split])
        assert {split_of(Scene.from_json(r["meta"]["scene"])) for r in records} == {split}
    for first, second in itertools.combinations(SPLITS, 2):
        assert not keys[first] & keys[second]
        assert not voices[first] & voices[second]
        assert not media[first] & media[second]


def test_splits_of_another_seed_agree():
    held_out = set().union(*map(_contents, make_plan(200, seed=1).records["test"]))
    trained = set().union(*map(_contents, make_plan(200, seed=2).records["train"]))
    assert held_out and not held_out & trained


def test_spoken_share_takes_speech_away_and_nothing_else():
    whole, some, none = (make_plan(400, seed=0, spoken_share=share) for share in (1.0, 0.25, 0.0))
    assert whole == make_plan(400, seed=0)
    for split in SPLITS:
        pictures = [[r for r in plan.records[split] if r["task"] in ("caption", "t2i")] for plan in (whole, some, none)]
        assert pictures[0] == pictures[1] == pictures[2]
        assert {r["task"] for r in none.records[split]} == {"caption", "t2i", "text"}
        spoken = {r["id"] for r in some.records[split] if r["task"] in ("asr", "tts", "chat_speech", "chat_image")}
        assert spoken and spoken < {r["id"] for r in whole.records[split]}
    assert none.speech == []
    assert 0.2 < len(some.speech) / len(whole.speech) < 0.3


def test_a_large_world_keeps_its_share_of_scenes_of_one_object():
    records = make_plan(6000, seed=0, spoken_share=0.0).records["train"]
    scenes = [Scene.from_json(r["meta"]["scene"]) for r in records if r["task"] == "t2i"]
    counts = collections.Counter(len(scene.objects) for scene in scenes)
    for count, weight in enumerate(OBJECT_COUNT_WEIGHTS, 1):
        assert abs(counts[count] / len(scenes) - weight) < 0.02
    several = [scene for scene in scenes if len(scene.objects) > 1]
    assert len(set(several)) == len(several)  # repeated only where new ones are rare


@pytest.mark.parametrize(("size", "held_out"), [(8, 2), (100, 25), (300, 48), (3000, 150)])
def test_split_sizes(size, held_out):
    assert split_sizes(size) == {"train": size - 2 * held_out, "validation": held_out, "test": held_out}


def test_documents_have_the_promised_form():
    plan = make_plan(300, seed=0)
    shapes = {
        "caption": [("user", ["image"]), ("assistant", ["text"])],
        "t2i": [("user", ["text"]), ("assistant", ["image"])],
        "asr": [("user", ["speech"]), ("assistant", ["text"])],
        "tts": [("user", ["text"]), ("assistant", ["speech"])],
        "text": [("assistant", ["text"])],
    }
    seen, ids, turns_of_chats = set(), set(), collections.Counter()
    for record in itertools.chain(*plan.records.values()):
        assert record["id"] not in ids
        ids.add(record["id"])
        seen.add(record["task"])
        form = [(turn["role"], [next(iter(part)) for part in turn["parts"]]) for turn in record["turns"]]
        if record["task"] in shapes:
            assert form == shapes[record["task"]]
            continue
        turns_of_chats[record["task"], len(form)] += 1
        assert form[0::2] == [("user", ["speech"])] * (len(form) // 2)
        answers = {tuple(parts) for role, parts in form[1::2] if role == "assistant"}
        if record["task"] == "chat_image":
            assert form[1] == ("assistant", ["text", "image"])
        else:
            assert answers == {("text",)}
    assert seen == {"caption", "t2i", "asr", "tts", "text", "chat_image", "chat_speech"}
    assert {n for task, n in turns_of_chats if task == "chat_speech"} == {2, 4, 6}
    assert {n for task, n in turns_of_chats if task == "chat_image"} == {2, 4}
