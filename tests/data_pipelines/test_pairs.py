"""Pairs to documents: tasks, instructions and dropped prompts by lot, each a pure function of the record."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax import templates
from ar_omni_jax.documents import DocumentError, Part, Role
from ar_omni_jax.vocabulary import Modality, compact_vocabulary
from data_pipelines import build_shards, pairs
from data_pipelines.pairs import INSTRUCTIONS, choose_task, pair_document
from data_pipelines.sources.manifest import ManifestSource
from data_pipelines.sources.options import PAIR_TASKS, SourceOptions, parse_options

MEDIA = (Modality.IMAGE, Modality.SPEECH)
VOCABULARY = compact_vocabulary(300, 16, 32, (2, 2))
CODES = np.arange(4, dtype=np.int32)

names = st.text(min_size=1, max_size=20)
weights = st.floats(0.05, 20)


def encode(text):
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


def decode(pieces):
    return bytes(np.asarray(pieces, np.uint8)).decode("utf-8")


def make(name, modality, options, text="a red ball"):
    return pair_document(name, text, Part(modality, b"data"), options, source="test", where="here")


def tokens_of(document, template="paper"):
    return templates.tokenize(document, template, VOCABULARY, encode, [CODES])


@st.composite
def some_options(draw):
    tasks = [(task, draw(weights)) for kind in MEDIA for task in PAIR_TASKS[kind] if draw(st.booleans())]
    for kind in MEDIA:  # at least one of each kind
        if not {task for task, _ in tasks} & set(PAIR_TASKS[kind]):
            tasks.append((PAIR_TASKS[kind][draw(st.integers(0, 1))], draw(weights)))
    dropout = draw(st.sampled_from((0.0, 0.05, 0.5, 1.0)))
    return SourceOptions(tuple(tasks), draw(st.booleans()), dropout, draw(st.integers(0, 2**40)))


@given(names, st.sampled_from(MEDIA), some_options(), st.sampled_from(sorted(templates.TEMPLATE_SETS)))
@settings(max_examples=200, deadline=None)
def test_every_pair_becomes_a_document_that_can_be_read_back(name, modality, options, template):
    document = make(name, modality, options)
    assert document == make(name, modality, options)
    assert document.task in dict(options.tasks) and document.task in PAIR_TASKS[modality]
    assert document.id == name and document.group == ("image" if modality == Modality.IMAGE else "speech")
    stream = tokens_of(document, template)
    answer = [span for span in stream.spans if span.role == Role.RESPONSE]
    modalities = {span.modality for span in answer} - {Modality.MARKER}
    if document.task in ("caption", "asr"):
        assert modalities == {Modality.TEXT}
        piece = next(span for span in answer if span.modality == Modality.TEXT)
        codes = VOCABULARY.to_codes(Modality.TEXT, stream.tokens[piece.start : piece.end])
        assert templates.response_text(codes, decode) == "a red ball"
    else:
        assert modalities == {modality}
    prompt = templates.prompt(document, template, VOCABULARY, encode, [CODES][: document.task in ("caption", "asr")])
    assert np.array_equal(stream.tokens[: len(prompt)], prompt)
    asked = any(span.modality == Modality.TEXT and span.role == Role.PROMPT for span in stream.spans)
    assert asked != document.prompt_dropped


@given(st.sampled_from(MEDIA), weights, weights, st.integers(0, 2**30))
@settings(max_examples=20, deadline=None)
def test_tasks_come_in_the_ratio_of_their_weights(modality, first, second, seed):
    one, other = PAIR_TASKS[modality]
    options = SourceOptions(((one, first), (other, second)), seed=seed)
    count = 2000
    found = collections.Counter(choose_task(f"record {i}", modality, options) for i in range(count))
    share = first / (first + second)
    assert abs(found[one] - share * count) < 5 * np.sqrt(count * share * (1 - share)) + 1
    turned = dataclasses.replace(options, tasks=options.tasks[::-1])
    assert all(choose_task(f"{i}", modality, options) == choose_task(f"{i}", modality, turned) for i in range(50))


def test_without_weights_both_tasks_come_equally_often():
    for modality in MEDIA:
        found = collections.Counter(make(f"{i}", modality, SourceOptions()).task for i in range(2000))
        assert set(found) == set(PAIR_TASKS[modality]) and abs(found[PAIR_TASKS[modality][0]] - 1000) < 120


def test_a_changed_ratio_changes_as_few_records_as_possible():
    before, after = (SourceOptions((("caption", 1), ("t2i", weight))) for weight in (1, 1.5))
    changed = [
        (choose_task(f"{i}", Modality.IMAGE, before), choose_task(f"{i}", Modality.IMAGE, after)) for i in range(2000)
    ]
    assert {pair for pair in changed if pair[0] != pair[1]} == {("caption", "t2i")}
    assert abs(sum(a != b for a, b in changed) - 200) < 80


@pytest.mark.parametrize("share", (0.05, 0.5))
def test_prompts_are_dropped_in_ratio_whatever_the_task(share):
    options = SourceOptions(prompt_dropout=share, seed=3)
    for modality in MEDIA:
        documents = [make(f"{i}", modality, options) for i in range(4000)]
        for task in PAIR_TASKS[modality]:
            dropped = [document.prompt_dropped for document in documents if document.task == task]
            wanted = share * len(dropped) if modality == Modality.IMAGE else 0
            assert abs(sum(dropped) - wanted) <= 5 * np.sqrt(wanted)


def test_a_dropped_prompt_is_what_guidance_reads():
    marker = VOCABULARY.marker
    picture = [marker("boi"), *VOCABULARY.to_ids(Modality.IMAGE, CODES).tolist(), marker("eoi")]
    for template in templates.TEMPLATE_SETS:
        for task, beyond in (("t2i", 0), ("caption", len(picture))):
            options = SourceOptions(((task, 1),), instructions=True, prompt_dropout=1.0)
            stream = tokens_of(make("x", Modality.IMAGE, options), template)
            assert stream.tokens[: 1 + len(picture)].tolist() == [marker("bos"), *picture]
            prompt = sum(span.end - span.start for span in stream.spans if span.role == Role.PROMPT)
            assert prompt == 1 + beyond and stream.tokens[-1] == marker("eos")


def test_all_instructions_are_used_and_independent_of_the_task():
    options = SourceOptions(instructions=True)
    for modality in MEDIA:
        found = collections.defaultdict(collections.Counter)
        for i in range(4000):
            document = make(f"{i}", modality, options)
            texts = [
                p.value for p in document.turns[0].parts if p.modality == Modality.TEXT and p.value != "a red ball"
            ]
            found[document.task][tuple(texts)] += 1
        for task in PAIR_TASKS[modality]:
            assert set(found[task]) == {(), *((way,) for way in INSTRUCTIONS[task])}
            assert min(found[task].values()) > 0.7 * 2000 / 8


def test_instructions_are_distinct_and_differ_from_those_of_the_templates():
    every = [way for ways in INSTRUCTIONS.values() for way in ways]
    for template in templates.TEMPLATE_SETS.values():
        every += [template.forms[task].instruction for task in INSTRUCTIONS]
    assert len(set(every)) == len(every) and set(INSTRUCTIONS) == {t for tasks in PAIR_TASKS.values() for t in tasks}


@pytest.mark.parametrize("text", ("", " \n", None, 3))
def test_a_pair_without_text_is_refused(text):
    with pytest.raises(DocumentError, match="here: record 'x': empty or missing caption"):
        make("x", Modality.IMAGE, SourceOptions(), text)
    with pytest.raises(DocumentError, match="missing transcript"):
        make("x", Modality.SPEECH, SourceOptions(), text)


def test_tasks_of_the_other_kind_only_are_refused():
    with pytest.raises(DocumentError, match="here: a pair of text and speech serves asr or tts, .* only caption, t2i"):
        make("x", Modality.SPEECH, SourceOptions((("caption", 1), ("t2i", 1))))


# -- options -------------------------------------------------------------------------------------------------
def test_options_from_a_command_line():
    options = parse_options("caption:1, t2i:3,asr", True, 0.05, 7, "media:audio, text:words")
    assert options.tasks == (("caption", 1.0), ("t2i", 3.0), ("asr", 1.0))
    assert options.column("media") == "audio" and options.column("id") is None
    assert parse_options() == SourceOptions()


@pytest.mark.parametrize(
    "words,message",
    [
        ({"tasks": "dance:1"}, "'dance' is no task of a pair; choose from caption, t2i, asr, tts"),
        ({"tasks": "asr:much"}, "weight 'much' of asr is no number"),
        ({"tasks": "asr:0"}, "weight 0.0 of asr must be a positive"),
        ({"tasks": "asr:nan"}, "must be a positive"),
        ({"tasks": "asr:1,asr:2"}, "asr is given twice"),
        ({"tasks": ":1"}, "has no name"),
        ({"prompt_dropout": 1.5}, "1.5 must lie in"),
        ({"columns": "sound:x"}, "sound:x is not one of media, text, id"),
        ({"columns": "text"}, "with a column's name"),
    ],
)
def test_wrong_options_are_named(words, message):
    with pytest.raises(DocumentError, match=message):
        parse_options(**words)


def test_flags_reach_the_source_and_wrong_ones_end_in_words(tmp_path):
    command = ["--source=manifest", f"--input={tmp_path}", f"--output={tmp_path}"]
    for flag, message in (
        ("--tasks=sing", "'sing' is no task"),
        ("--tasks=asr:1", "source manifest does not take --tasks"),
        ("--prompt_dropout=2", "prompt_dropout 2.0 must lie in"),
    ):
        with pytest.raises(SystemExit, match=message):
            build_shards.main([*command, flag])


def test_a_manifest_drops_prompts_of_pictures_and_captions_alone(tmp_path):
    lines = [
        {"id": f"{task}{i}", "task": task, "turns": turns}
        for i in range(400)
        for task, turns in (
            ("t2i", [[{"text": "a red circle"}], [{"image": "a.png"}]]),
            ("tts", [[{"text": "a red circle"}], [{"speech": "a.wav"}]]),
        )
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = ManifestSource(path, SourceOptions(prompt_dropout=0.1))
    dropped = {record.id for record in source.read(0, 800) if record.document.prompt_dropped}
    assert 15 <= len(dropped) <= 70 and all(name.startswith("t2i") for name in dropped)
    again = [record.document.prompt_dropped for record in source.read(700, 800)]
    assert again == [f"{line['id']}" in dropped for line in lines[700:]]  # of the record alone, not of its place


def test_the_lots_are_uniform():
    found = np.sort([pairs._lot(0, "task", f"{i}") for i in range(4000)])
    assert np.abs(found - np.arange(4000) / 4000).max() < 1.95 / np.sqrt(4000)  # Kolmogorov-Smirnov, p = 0.001
