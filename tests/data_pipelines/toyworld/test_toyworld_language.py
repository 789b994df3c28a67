"""The toy language: captions read back, sentences true and within the grammar that a recognizer listens with."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.toyworld import caption, jsgf_grammar, parse_caption, vocabulary_words
from data_pipelines.toyworld.dialogues import fact, fact_question, scene_question
from data_pipelines.toyworld.documents import make_plan
from data_pipelines.toyworld.language import NUMBERS, SIDES
from data_pipelines.toyworld.scene import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, SceneObject


@st.composite
def scenes(draw):
    count = draw(st.integers(1, 3))
    colors = draw(st.permutations(list(COLORS)))[:count]
    places = draw(st.permutations(POSITIONS))[:count]
    objects = [
        SceneObject(draw(st.sampled_from(SHAPES)), color, draw(st.sampled_from(SIZES)), place)
        for color, place in zip(colors, places, strict=True)
    ]
    return Scene(tuple(objects), draw(st.sampled_from(list(BACKGROUNDS))))


def grammar_pattern() -> re.Pattern:
    """The JSGF grammar as one regular expression; it has no recursion, so this is exact."""
    rules = dict(re.findall(r"^(?:public )?<(\w+)> = (.*);$", jsgf_grammar(), re.MULTILINE))

    def expand(body: str) -> str:
        tokens = re.findall(r"<\w+>|\w+|[|\[\]]", body)
        out = []
        for token in tokens:
            if token.startswith("<"):
                out.append(f"(?:{expand(rules[token[1:-1]])})")
            else:
                out.append({"[": "(?:", "]": ")?", "|": "|"}.get(token, f"{token} "))
        return "".join(out)

    return re.compile(f"(?:{expand(rules['sentence'])})")


@settings(deadline=None)
@given(scenes(), st.integers(0, 2**32), st.booleans())
def test_captions_are_read_back(scene, seed, with_background):
    text = caption(scene, random.Random(seed), with_background)
    assert parse_caption(text) == Scene(scene.objects, scene.background if with_background else None)


@settings(deadline=None)
@given(st.text())
def test_parsing_never_fails(text):
    assert isinstance(parse_caption(text), Scene)


@pytest.mark.parametrize(
    ("text", "objects", "background"),
    [
        ("", [], None),
        ("A LARGE red circle, top left. on white", [("circle", "red", "large", "top left")], "white"),
        ("two circles", [("circle", None, None, None)], None),
        ("a red", [], None),
        (
            "a small blue cross a big green square at the bottom",  # a forgotten "and"
            [("cross", "blue", "small", None), ("square", "green", "large", "bottom")],
            None,
        ),
        ("in the middle a little red red triangle", [("triangle", "red", "small", "center")], None),
        ("a circle on the right on a gray background", [("circle", None, None, "right")], "gray"),
    ],
)
def test_parsing_takes_what_models_write(text, objects, background):
    assert parse_caption(text) == Scene(tuple(SceneObject(*item) for item in objects), background)


def test_paraphrases_differ():
    scene = Scene((SceneObject("circle", "red", "large", "top left"),), "white")
    assert len({caption(scene, random.Random(seed)) for seed in range(200)}) > 20


def test_all_sentences_are_in_the_vocabulary_and_spoken_ones_in_the_grammar():
    words = set(vocabulary_words())
    assert len(words) <= 90
    plan = make_plan(400, seed=3)
    pattern = grammar_pattern()
    for job in plan.speech:
        assert pattern.fullmatch(job.text + " "), job.text
    for records in plan.records.values():
        for record in records:
            for turn in record["turns"]:
                for part in turn["parts"]:
                    strange = set(re.findall(r"\w+", part.get("text", ""))) - words
                    assert not strange, (record["id"], strange)


def test_the_grammar_refuses_other_sentences():
    assert not grammar_pattern().fullmatch("the cat is on the mat ")
    assert not grammar_pattern().fullmatch("a red large circle at the top ")


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_facts_are_true(seed):
    text = fact(random.Random(seed)).split()
    value = {name: number for number, name in enumerate(NUMBERS, start=1)}
    if "after" in text:
        assert value[text[0]] == value[text[-1]] + 1
    elif "before" in text:
        assert value[text[0]] == value[text[-1]] - 1
    elif "plus" in text:
        assert value[text[0]] + value[text[2]] == value[text[4]]
    elif "sides" in text:
        assert SIDES[text[1]] == text[3]
    else:
        kinds = {"color": COLORS, "shape": SHAPES, "number": NUMBERS}
        assert text[-4 if text[0] != "a" else 1] in kinds[text[-1]]


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_fact_answers_are_true(seed):
    exchange = fact_question(random.Random(seed))
    words = exchange.spoken.split()
    value = {name: number for number, name in enumerate(NUMBERS, start=1)}
    if "after" in words:
        assert value[exchange.text] == value[words[-1]] + 1
    elif "before" in words:
        assert value[exchange.text] == value[words[-1]] - 1
    elif "plus" in words:
        assert value[exchange.text] == value[words[2]] + value[words[4]]
    else:
        assert exchange.text == SIDES[words[5]]


@settings(deadline=None)
@given(scenes(), st.integers(0, 2**32))
def test_questions_about_scenes_have_one_right_answer(scene, seed):
    exchange = scene_question(scene, random.Random(seed))
    words = exchange.spoken.split()
    if "many" in words:
        assert exchange.text == NUMBERS[len(scene.objects) - 1]
        return
    fitting = [
        item
        for item in scene.objects
        if (item.color in words or not COLORS.keys() & set(words)) and (item.shape in words or "shape" in words)
    ]
    assert len(fitting) == 1
    said = parse_caption(f"a {exchange.text} circle" if "where" in words else "")
    if "where" in words:
        assert said.objects[0].position == fitting[0].position
    else:
        asked = "size" if "big" in words else words[1]
        assert exchange.text == getattr(fitting[0], asked)
