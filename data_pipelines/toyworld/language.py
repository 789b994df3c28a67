"""The toy language: captions of scenes and how to read them back, statements, questions, facts; all lower case.

Sentences are templates with slots in braces. The same templates make the text, and the grammar that an independent
speech recognizer listens with (`grammar.py`), so neither can know a sentence that the other does not.
"""

import random
import re

from data_pipelines.toyworld.scene import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, SceneObject

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
SIDES = {"square": "four", "triangle": "three"}
PLACES = {
    "top left": ("at the top left", "in the top left"),
    "top": ("at the top",),
    "top right": ("at the top right", "in the top right"),
    "left": ("on the left", "at the left"),
    "center": ("in the center", "in the middle"),
    "right": ("on the right", "at the right"),
    "bottom left": ("at the bottom left", "in the bottom left"),
    "bottom": ("at the bottom",),
    "bottom right": ("at the bottom right", "in the bottom right"),
}

# Slots: {size} {color} {shape} {place} {number} {background} and the numbered {number2}, {number3}.
OBJECT = "a {size} {color} {shape}"
CLAUSES = (
    OBJECT + " {place}",
    OBJECT + " {place}",  # twice as likely as the others
    "{place} " + OBJECT,
    OBJECT + " is {place}",
    "there is " + OBJECT + " {place}",
)
BACKGROUND_ENDINGS = ("on {background}", "on a {background} background")

STATEMENTS = {
    "place": ("the {color} {shape} is {place}", "there is one {color} {shape} {place}"),
    "size": ("the {color} {shape} is {size}",),
    "color": ("the {size} {shape} is {color}",),
    "count": ("there are {number} shapes", "i see {number} shapes"),
    "count_one": ("there is one shape", "i see one shape"),
}
QUESTIONS_ABOUT_SCENES = {
    "color": ("what color is the {shape}",),
    "place": ("where is the {color} {shape}", "where is the {shape}"),
    "size": ("how big is the {color} {shape}", "how big is the {shape}"),
    "shape": ("what shape is {color}",),
    "count": ("how many shapes are there", "how many shapes do you see"),
}
QUESTIONS_ABOUT_FACTS = {
    "after": ("what comes after {number}",),
    "before": ("what comes before {number}",),
    "plus": ("what is {number} plus {number2}",),
    "sides": ("how many sides does a {sided} have",),
}
FACTS = {
    "after": ("{number2} comes after {number}",),
    "before": ("{number2} comes before {number}",),
    "plus": ("{number} plus {number2} is {number3}",),
    "sides": ("a {sided} has {number} sides",),
    "kind": ("{color} is a color", "a {shape} is a shape", "{number} is a number"),
}
REQUESTS = ("draw ", "show me ")
EDITS = {
    "color": ("make it {color}", "make the {shape} {color}"),
    "size": ("make it {size}", "make the {shape} {size}"),
    "place": ("move it to the {position}", "move the {shape} to the {position}"),
}


def describe(template: str, item: SceneObject, rng: random.Random) -> str:
    """`template` with its slots filled from one object."""
    return template.format(
        size=rng.choice(SIZE_WORDS[item.size]),
        color=item.color,
        shape=item.shape,
        place=rng.choice(PLACES[item.position]),
        position=item.position,
    )


def caption(scene: Scene, rng: random.Random, with_background: bool = True) -> str:
    """One paraphrase of everything in the scene; `parse_caption` reads it back.

    Args:
        scene: every attribute known.
        rng: picks the paraphrase.
        with_background: False leaves the background out, as the spoken captions do to stay short.
    """
    objects = list(scene.objects)
    rng.shuffle(objects)
    text = " and ".join(describe(rng.choice(CLAUSES), item, rng) for item in objects)
    if with_background:
        text += " " + rng.choice(BACKGROUND_ENDINGS).format(background=scene.background)
    return text


_BACKGROUND = re.compile(rf"\bon (?:a |the )?({'|'.join(BACKGROUNDS)})(?: background)?\b")
_SIZE_OF_WORD = {word: size for size, words in SIZE_WORDS.items() for word in words}
_SHAPE_OF_WORD = {shape: shape for shape in SHAPES} | {plural: shape for shape, plural in PLURALS.items()}


def parse_caption(text: str) -> Scene:
    """What a caption says, the inverse of `caption`; never fails, whatever a model wrote.

    Attributes that are not said, and the background, are None. Clauses end at "and", at punctuation, and at "a". A
    clause without a shape is no object; without an "and" between, it belongs to its neighbour. Of words
    that contradict each other the first counts.
    """
    text = text.lower()
    background = _BACKGROUND.search(text)
    objects = tuple(map(_parse_clause, _clauses(_BACKGROUND.sub(" , ", text))))
    return Scene(objects, background.group(1) if background else None)


def _clauses(text: str) -> list[list[str]]:
    """The words of each clause that names a shape."""
    clauses: list[list[str]] = []
    for part in re.split(r"\band\b", text):
        known: list[list[str]] = [[]]
        for piece in re.split(r"[^a-z\s]+|\ba\b", part):
            words = piece.split()
            if any(word in _SHAPE_OF_WORD for word in words) and any(word in _SHAPE_OF_WORD for word in known[-1]):
                known.append(words)
            else:
                known[-1] += words
        clauses += [words for words in known if any(word in _SHAPE_OF_WORD for word in words)]
    return clauses


def _parse_clause(words: list[str]) -> SceneObject:
    def first(meanings):
        return next((meanings[word] for word in words if word in meanings), None)

    row = first({"top": "top", "bottom": "bottom"})
    column = first({"left": "left", "right": "right"})
    middle = first({"center": "center", "middle": "center"})
    position = f"{row} {column}" if row and column else row or column or middle
    return SceneObject(first(_SHAPE_OF_WORD), first({c: c for c in COLORS}), first(_SIZE_OF_WORD), position)


def slot_values() -> dict[str, tuple[str, ...]]:
    """Every slot of the templates and all that can stand in it."""
    return {
        "size": tuple(word for size in SIZES for word in SIZE_WORDS[size]),
        "color": tuple(COLORS),
        "shape": SHAPES,
        "sided": tuple(SIDES),
        "place": tuple(place for name in POSITIONS for place in PLACES[name]),
        "position": POSITIONS,
        "background": tuple(BACKGROUNDS),
        "number": NUMBERS,
        "number2": NUMBERS,
        "number3": NUMBERS,
    }


def spoken_templates() -> dict[str, tuple[str, ...]]:
    """Templates of every sentence that is ever spoken, captions excepted: those are clauses joined by "and"."""
    return {
        "statement": tuple(t for group in STATEMENTS.values() for t in group),
        "question": tuple(t for group in QUESTIONS_ABOUT_SCENES.values() for t in group),
        "fact_question": tuple(t for group in QUESTIONS_ABOUT_FACTS.values() for t in group),
        "fact": tuple(t for group in FACTS.values() for t in group),
        "edit": tuple(t for group in EDITS.values() for t in group),
    }


def vocabulary_words() -> list[str]:
    """Every word of the toy language, sorted."""
    values = slot_values()
    sentences = [t for group in spoken_templates().values() for t in group]
    sentences += [*CLAUSES, *BACKGROUND_ENDINGS, *REQUESTS, "and", "yes", "no"]
    sentences += [choice for choices in values.values() for choice in choices]
    words = {word for sentence in sentences for word in re.sub(r"\{\w+\}", " ", sentence).split()}
    return sorted(words)
