"""Judges of the toy world: how many attributes of a scene a picture or a caption got right.

One number for both, "attributes right": true and found objects are matched one to one so that as many attributes
agree as can; the agreeing attributes of the matches are divided by the attributes of the larger of the two sides. So a
missing object and an extra one cost the same: all four attributes of one object.

A score is a dict of fractions in [0, 1]:
- `shapes`, `colors`, `sizes`, `positions`: agreeing ones of the matched objects, over the objects of the larger side;
- `attributes`: "attributes right", the mean of these four;
- `exact`: 1 if every object and attribute is right and nothing is extra;
- `background`: 1 if the background is right (a caption that names none is wrong); it counts in no other score.
"""

import random
import re
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from ar_omni_jax.evaluation.toy_vision import read_scene
from data_pipelines.toyworld.language import parse_caption
from data_pipelines.toyworld.scene import Scene, SceneObject

__all__ = [
    "answer_right",
    "chance_score",
    "change_made",
    "compare",
    "compare_scenes",
    "mean_score",
    "nothing",
    "read_scene",
    "score_caption",
    "score_image",
]

_FIELDS = ("shapes", "colors", "sizes", "positions")  # in the order of SceneObject.ATTRIBUTES
Score = dict[str, float]


def compare_scenes(found: Scene, truth: Scene) -> Score:
    """How much of `truth` is in `found`. Two scenes without objects agree wholly."""
    background = float(found.background == truth.background)
    count = max(len(found.objects), len(truth.objects))
    if count == 0:
        return dict.fromkeys((*_FIELDS, "attributes", "exact"), 1.0) | {"background": background}
    agree = np.zeros((len(truth.objects), len(found.objects), len(SceneObject.ATTRIBUTES)), bool)
    for row, true_object in enumerate(truth.objects):
        for column, found_object in enumerate(found.objects):
            agree[row, column] = [
                getattr(true_object, name) == getattr(found_object, name) for name in SceneObject.ATTRIBUTES
            ]
    rows, columns = linear_sum_assignment(-agree.sum(-1))
    right = agree[rows, columns].sum(0) / count
    score = {name: float(fraction) for name, fraction in zip(_FIELDS, right, strict=True)}
    mean = float(right.mean())
    return score | {"attributes": mean, "exact": float(mean == 1.0), "background": background}


def score_image(pixels: np.ndarray, scene: Scene | dict) -> Score:
    """A picture, uint8 [64, 64, 3], against the scene (or a manifest's `meta.scene`) that it should show."""
    return compare_scenes(read_scene(pixels), _scene(scene))


def score_caption(text: str, scene: Scene | dict) -> Score:
    """A caption against the scene (or `meta.scene`) that it should describe; attributes it leaves out are wrong."""
    return compare_scenes(parse_caption(text), _scene(scene))


def nothing(scene: Scene | dict) -> Score:
    """The score of no answer at all."""
    return compare_scenes(Scene((), None), _scene(scene))


def answer_right(text: str, accepted: Iterable[str]) -> bool:
    """Whether an answer's words are those of an accepted wording; capitals and punctuation do not count."""
    words = _words(text)
    return bool(words) and any(words == _words(wording) for wording in accepted)


def _words(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9 ]", " ", text.lower()).split()


def compare(found: Scene | dict, truth: Scene | dict) -> Score:
    """`compare_scenes` of scenes or a manifest's records of them."""
    return compare_scenes(_scene(found), _scene(truth))


def change_made(found: Scene, truth: Scene | dict, before: Scene | dict) -> bool:
    """Whether the one object in which `truth` differs from `before` is in `found` with all of its new attributes."""
    truth, before = _scene(truth), _scene(before)
    new = [item for item in truth.objects if item not in before.objects]
    return bool(new) and all(item in found.objects for item in new)


def mean_score(scores: Iterable[Score]) -> Score:
    """The mean of each field.

    Raises:
        ValueError: for no scores.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("no scores to average; the evaluation set is empty")
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def chance_score(scenes: Sequence[Scene | dict], seed: int = 0, rounds: int = 20) -> Score:
    """What a system scores that knows the distribution but not the input: each scene against others of the set by lot.

    Args:
        scenes: at least two.
        seed: of the lot.
        rounds: how many others each scene is held against.
    """
    if len(scenes) < 2:
        raise ValueError(f"the chance level needs at least two scenes; got {len(scenes)}")
    rng = random.Random(seed)
    known = [_scene(scene) for scene in scenes]
    pairs = [
        (known[(index + rng.randrange(1, len(known))) % len(known)], truth)
        for index, truth in enumerate(known)
        for _ in range(rounds)
    ]
    return mean_score(compare_scenes(found, truth) for found, truth in pairs)


def _scene(scene: Scene | dict) -> Scene:
    return scene if isinstance(scene, Scene) else Scene.from_json(scene)
