"""Sentences about a scene or about simple facts, and dialogues made of them, as text that is still to be spoken."""

import dataclasses
import random

from data_pipelines.toyworld.language import (
    EDITS,
    FACTS,
    NUMBERS,
    PLACES,
    QUESTIONS_ABOUT_FACTS,
    QUESTIONS_ABOUT_SCENES,
    REQUESTS,
    SIDES,
    STATEMENTS,
    caption,
    describe,
)
from data_pipelines.toyworld.scene import (
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    random_scene_of_split,
    split_of,
)

_EDIT_TRIES = 100


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One turn of each side: what the user says, what the assistant writes and, if `scene` is set, draws."""

    spoken: str
    text: str
    scene: Scene | None = None


def scene_statement(scene: Scene, rng: random.Random) -> str:
    """A true sentence about one object of the scene or their number."""
    kind = rng.choice(["place", "size", "color", "count"])
    count = len(scene.objects)
    if kind == "count":
        template = rng.choice(STATEMENTS["count" if count > 1 else "count_one"])
        return template.format(number=NUMBERS[count - 1])
    return describe(rng.choice(STATEMENTS[kind]), rng.choice(scene.objects), rng)


def fact(rng: random.Random) -> str:
    """A true sentence that needs no scene: counting, adding, sides of shapes, kinds of words."""
    kind = rng.choice(list(FACTS))
    template = rng.choice(FACTS[kind])
    if kind == "kind":
        return template.format(color=rng.choice(list(COLORS)), shape=rng.choice(SHAPES), number=rng.choice(NUMBERS))
    return template.format(**_fact_values(kind, rng))


def _fact_values(kind: str, rng: random.Random) -> dict[str, str]:
    """Slots that make the templates of a kind of fact true; `answer` is what a question about it asks for."""
    if kind == "after":
        first = rng.randrange(len(NUMBERS) - 1)
        return {"number": NUMBERS[first], "number2": NUMBERS[first + 1], "answer": NUMBERS[first + 1]}
    if kind == "before":
        first = rng.randrange(1, len(NUMBERS))
        return {"number": NUMBERS[first], "number2": NUMBERS[first - 1], "answer": NUMBERS[first - 1]}
    if kind == "plus":
        total = rng.randint(2, len(NUMBERS))
        left = rng.randint(1, total - 1)
        values = {"number": NUMBERS[left - 1], "number2": NUMBERS[total - left - 1], "number3": NUMBERS[total - 1]}
        return values | {"answer": values["number3"]}
    shape = rng.choice(list(SIDES))
    return {"sided": shape, "number": SIDES[shape], "answer": SIDES[shape]}


def fact_question(rng: random.Random) -> Exchange:
    """A question that needs no scene, and its short answer."""
    kind = rng.choice(list(QUESTIONS_ABOUT_FACTS))
    values = _fact_values(kind, rng)
    return Exchange(rng.choice(QUESTIONS_ABOUT_FACTS[kind]).format(**values), values["answer"])


def scene_question(scene: Scene, rng: random.Random) -> Exchange:
    """A question about the scene that has exactly one answer, and that answer."""
    kind = rng.choice(list(QUESTIONS_ABOUT_SCENES))
    item = rng.choice(scene.objects)
    if kind == "count":
        return Exchange(rng.choice(QUESTIONS_ABOUT_SCENES[kind]), NUMBERS[len(scene.objects) - 1])
    alone = sum(other.shape == item.shape for other in scene.objects) == 1
    templates = [t for t in QUESTIONS_ABOUT_SCENES[kind] if alone or "{color}" in t or "{shape}" not in t]
    if not templates:
        return scene_question(scene, rng)
    answers = {
        "color": item.color,
        "place": PLACES[item.position][0],
        "size": item.size,
        "shape": item.shape,
    }
    return Exchange(describe(rng.choice(templates), item, rng), answers[kind])


def short_utterance(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """(kind, sentence) to be spoken beside a caption: a question, a statement or a fact."""
    kind = rng.choice(["question", "question", "statement", "fact"])
    if kind == "question":
        ask = rng.choice([lambda: scene_question(scene, rng), lambda: fact_question(rng)])
        return kind, ask().spoken
    return kind, scene_statement(scene, rng) if kind == "statement" else fact(rng)


def spoken_questions(scene: Scene, rng: random.Random) -> list[Exchange]:
    """One to three exchanges: questions about facts, or a described scene and follow-up questions about it."""
    count = rng.randint(1, 3)
    if count == 1 or len(scene.objects) > 2:
        return [fact_question(rng) for _ in range(count)]
    exchanges = [Exchange(caption(scene, rng, with_background=False), acknowledgement(scene))]
    while len(exchanges) < count:
        question = scene_question(scene, rng)
        if all(question.text != earlier.text for earlier in exchanges):
            exchanges.append(question)
    return exchanges


def acknowledgement(scene: Scene) -> str:
    """What the assistant says when it has been told a scene."""
    objects = " and ".join(f"a {item.size} {item.color} {item.shape}" for item in scene.objects)
    return "i see " + objects


def picture_requests(scene: Scene, split: str, rng: random.Random) -> list[Exchange]:
    """A spoken request for a picture, answered by its transcript and the picture, and perhaps a follow-up.

    The follow-up asks about the picture or changes it; a changed scene belongs to the same split. A request names
    no background, so it is always white.
    """
    if len(scene.objects) > 2:  # three would take six seconds to say
        scene = random_scene_of_split(rng, split, max_objects=2)
    scene = Scene(scene.objects, "white")
    request = rng.choice(REQUESTS) + caption(scene, rng, with_background=False)
    exchanges = [Exchange(request, request, scene)]
    follow_up = rng.choice(["none", "question", "edit", "edit"])
    if follow_up == "question":
        exchanges.append(scene_question(scene, rng))
    elif follow_up == "edit" and len(scene.objects) == 1:
        exchanges += _edit(scene, split, rng)
    return exchanges


def _edit(scene: Scene, split: str, rng: random.Random) -> list[Exchange]:
    """A request to change the only object, or nothing where no change stays in the split."""
    old = scene.objects[0]
    choices = {"color": list(COLORS), "size": list(SIZES), "place": list(POSITIONS)}
    for _ in range(_EDIT_TRIES):
        kind = rng.choice(list(EDITS))
        field = "position" if kind == "place" else kind
        new = dataclasses.replace(old, **{field: rng.choice(choices[kind])})
        changed = Scene((new,), scene.background)
        if new != old and split_of(changed) == split:
            request = _edit_request(kind, new, rng)
            return [Exchange(request, request, changed)]
    return []


def _edit_request(kind: str, new: SceneObject, rng: random.Random) -> str:
    return describe(rng.choice(EDITS[kind]), new, rng)
