"""Attribute scores: worked examples, and the level of chance."""

import random

import numpy as np
import pytest

from ar_omni_jax.evaluation.toy_judges import (
    chance_score,
    compare_scenes,
    mean_score,
    nothing,
    score_caption,
    score_image,
)
from data_pipelines.toyworld import Scene, SceneObject, caption, draw, random_scene

CIRCLE = SceneObject("circle", "red", "large", "top left")
CROSS = SceneObject("cross", "blue", "small", "bottom")
SQUARE = SceneObject("square", "green", "small", "right")


def test_all_right():
    scene = Scene((CIRCLE, CROSS), "white")
    score = compare_scenes(scene, scene)
    assert set(score) == {"shapes", "colors", "sizes", "positions", "attributes", "exact", "background"}
    assert set(score.values()) == {1.0}
    assert score_caption(caption(scene, random.Random(0)), scene) == score
    assert score_image(np.asarray(draw(scene)), scene) == score


def test_one_wrong_attribute():
    almost = SceneObject("circle", "red", "small", "top left")
    score = compare_scenes(Scene((almost, CROSS), "white"), Scene((CIRCLE, CROSS), "white"))
    assert (score["sizes"], score["shapes"], score["attributes"], score["exact"]) == (0.5, 1.0, 7 / 8, 0.0)


def test_missing_and_extra_objects_cost_the_same():
    one, two = Scene((CIRCLE,), "white"), Scene((CIRCLE, CROSS), "white")
    assert compare_scenes(one, two)["attributes"] == compare_scenes(two, one)["attributes"] == 0.5
    three = Scene((CIRCLE, CROSS, SQUARE), "white")
    assert compare_scenes(three, one)["attributes"] == pytest.approx(1 / 3)


def test_matching_takes_the_best_pairs():
    # Paired in reading order, only the sizes would agree.
    found = Scene(
        (SceneObject("cross", "blue", "small", "top left"), SceneObject("circle", "red", "large", "bottom")), None
    )
    score = compare_scenes(found, Scene((CIRCLE, CROSS), None))
    assert (score["shapes"], score["colors"], score["positions"]) == (1.0, 1.0, 0.0)


def test_background_stands_apart():
    score = compare_scenes(Scene((CIRCLE,), "black"), Scene((CIRCLE,), "white"))
    assert (score["background"], score["exact"], score["attributes"]) == (0.0, 1.0, 1.0)


def test_what_is_not_said_is_wrong():
    scene = Scene((CIRCLE,), "white")
    assert score_caption("a red circle", scene)["attributes"] == 0.5
    assert score_caption("", scene) == nothing(scene)
    assert set(nothing(scene).values()) == {0.0}


def test_scenes_may_come_as_manifests_hold_them():
    scene = Scene((CIRCLE, CROSS), "gray")
    text = caption(scene, random.Random(1))
    assert score_caption(text, scene.to_json()) == score_caption(text, scene)
    assert set(nothing(scene.to_json()).values()) == {0.0}


def test_chance_is_low_and_repeatable():
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(400)]
    chance = chance_score(scenes)
    assert chance == chance_score([scene.to_json() for scene in scenes])
    # One colour in six, one place in nine, half the sizes, and less for counts that differ; matching helps a little.
    assert 0.15 < chance["attributes"] < 0.3
    assert chance["exact"] < 0.02
    with pytest.raises(ValueError, match="at least two scenes; got 1"):
        chance_score(scenes[:1])


def test_means():
    perfect, empty = (
        compare_scenes(Scene((CIRCLE,), "white"), Scene((CIRCLE,), "white")),
        nothing(Scene((CIRCLE,), "white")),
    )
    assert set(mean_score([perfect, empty]).values()) == {0.5}
    with pytest.raises(ValueError, match="no scores"):
        mean_score([])
