"""Questions about a picture, or about nothing that is seen, with the answers that are right: written and spoken."""

import dataclasses
import random

from data_pipelines.toyworld.dialogues import fact_question
from data_pipelines.toyworld.language import (
    NUMBERS,
    PLACES,
    QUESTIONS_ABOUT_SCENES,
    SIZE_WORDS,
    describe,
    slot_values,
)
from data_pipelines.toyworld.scene import OBJECT_COUNT_WEIGHTS, Scene, SceneObject

# Spoken answers are whole sentences: a word alone is hard to hear, for people and recognizers alike.
SENTENCES = {
    "color": "it is {color}",
    "place": "it is {place}",
    "size": "it is {size}",
    "shape": "it is a {shape}",
    "count": "there are {number} shapes",
    "count_one": "there is one shape",
}
_TRIES = 10
QUESTION_KINDS = (*QUESTIONS_ABOUT_SCENES, "fact")


@dataclasses.dataclass(frozen=True)
class Reply:
    """A question and its answer.

    Attributes:
        kind: one of QUESTION_KINDS.
        question: as it is asked.
        written: the short answer, in a word or few.
        spoken: the same as a sentence; "" where there is none (facts).
        accepted: every wording that counts as right, `written` and `spoken` among them.
        reveals: what is known of a scene after question and answer.
    """

    kind: str
    question: str
    written: str
    spoken: str
    accepted: tuple[str, ...]
    reveals: frozenset = frozenset()


def picture_question(scene: Scene, rng: random.Random, known: frozenset = frozenset()) -> Reply | None:
    """A question about the scene that has exactly one answer, which `known` does not give away.

    Args:
        known: `reveals` of earlier questions. All kinds that are left are equally likely; None where none is.
    """
    item = rng.choice(scene.objects)
    alone = sum(other.shape == item.shape for other in scene.objects) == 1
    choices = {}
    for kind, templates in QUESTIONS_ABOUT_SCENES.items():
        clear = [t for t in templates if alone or "{color}" in t or "{shape}" not in t]
        if clear and _asked_for(kind, item) not in known:
            choices[kind] = clear
    if not choices:
        return None
    kind = rng.choice(list(choices))
    template = rng.choice(choices[kind])
    reveals = {_asked_for(kind, item)}
    if "{color}" in template and "{shape}" in template:
        reveals.add(_asked_for("color", item))
    return Reply(kind, describe(template, item, rng), *_answers(kind, item, len(scene.objects)), frozenset(reveals))


def _asked_for(kind: str, item: SceneObject) -> tuple:
    """What is known once a question of this kind is answered: colour and shape of an object go together, for either
    names it and asks for the other."""
    if kind == "count":
        return ("count",)
    return ("color and shape" if kind in ("color", "shape") else kind, item)


def _answers(kind: str, item: SceneObject, count: int) -> tuple[str, str, tuple[str, ...]]:
    """(written, spoken, accepted) of the question `kind` about one object, or about the number of objects."""
    if kind == "count":
        short = (NUMBERS[count - 1],)
        sentences = (SENTENCES["count" if count > 1 else "count_one"].format(number=short[0]),)
    else:
        values = {
            "color": (item.color,),
            "place": (*PLACES[item.position], item.position),
            "size": SIZE_WORDS[item.size],
            "shape": (item.shape,),
        }
        short = values[kind]
        sentences = tuple(SENTENCES[kind].format(**{kind: value}) for value in short)
    with_article = tuple(f"a {value}" for value in short) if kind == "shape" else ()
    return short[0], sentences[0], (*short, *with_article, *sentences)


def other_question(rng: random.Random) -> Reply:
    """A question that needs no picture, answered in a word."""
    exchange = fact_question(rng)
    return Reply("fact", exchange.spoken, exchange.text, "", (exchange.text,))


def different_questions(scene: Scene | None, count: int, rng: random.Random) -> list[Reply]:
    """`count` questions about the scene (None: about facts), none answered by those before it; fewer where the scene
    has no more."""
    found: dict[str, Reply] = {}
    known: frozenset = frozenset()
    words: set[str] = set()  # a colour or shape that was named before is no riddle any more
    for _ in range(_TRIES * count):
        reply = other_question(rng) if scene is None else picture_question(scene, rng, known)
        told = reply is not None and reply.kind in ("color", "shape") and reply.written in words
        if reply is not None and reply.question not in found and not told:
            found[reply.question] = reply
            known |= reply.reveals
            words |= {*reply.question.split(), *reply.written.split()}
        if len(found) == count:
            break
    return list(found.values())


def answers_grammar() -> str:
    """JSGF text whose public rule covers the spoken answers of the dialogues, for an independent recognizer."""
    slots = slot_values()
    several = NUMBERS[1 : len(OBJECT_COUNT_WEIGHTS)]
    sentences = [SENTENCES[kind].format(**{kind: f"<{kind}>"}) for kind in ("color", "place", "size", "shape")]
    sentences += [SENTENCES["count"].format(number="<number>"), SENTENCES["count_one"]]
    rules = [f"<{kind}> = {' | '.join(slots[kind])};" for kind in ("color", "place", "size", "shape")]
    rules.append(f"<number> = {' | '.join(several)};")
    return "\n".join(["#JSGF V1.0;", "grammar answers;", *rules, f"public <answer> = {' | '.join(sentences)};"]) + "\n"
