"""Histories are cut by whole rounds, say what was dropped, and never lose the turn that is to be answered."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax import templates
from ar_omni_jax.documents import Document, DocumentError, Part, Turn
from ar_omni_jax.history import fit_history, read_history, turn_to_json, write_history
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.vocabulary import Modality

TOKENIZERS = load_tokenizers("toyworld", need=("text",))


def turn(number: int, words: int) -> Turn:
    role = ("user", "assistant")[number % 2]
    return Turn(role, (Part(Modality.TEXT, f"{role} {number} " + "red " * words),))


def dialogue(words) -> Document:
    return Document("talk", "chat", "text", tuple(turn(i, n) for i, n in enumerate(words)))


def count(document: Document) -> int:
    vocabulary, encode = TOKENIZERS.vocabulary, TOKENIZERS.text.encode
    return len(templates.prompt(document, "paper", vocabulary, encode))


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.integers(0, 20), min_size=1, max_size=13), room=st.integers(10, 250))
def test_the_longest_suffix_of_whole_rounds_that_fits(words, room):
    document = dialogue(words if len(words) % 2 else words[:-1] or [1])
    alone = count(Document("talk", "chat", "text", document.turns[-1:]))
    if alone > room:
        with pytest.raises(DocumentError, match=f"{alone} tokens, and there is room for {room}"):
            fit_history(document, count, room, room)
        return
    fitted = fit_history(document, count, room, room)
    assert fitted.dropped + fitted.document.turns == document.turns
    assert fitted.document.turns[0].role == "user" and fitted.document.turns[-1] == document.turns[-1]
    assert fitted.tokens == count(fitted.document) <= room
    assert fitted.tokens_before == count(document)
    if fitted.dropped:  # one round more would not have fitted
        kept = document.turns[len(fitted.dropped) - 2 :]
        assert count(Document("talk", "chat", "text", kept)) > room
        assert f"turns 1 to {len(fitted.dropped)} of {len(document.turns)}" in fitted.note()
    else:
        assert fitted.note() == ""


def test_the_note_says_what_was_dropped():
    fitted = fit_history(dialogue([3, 3, 30, 3, 3]), count, room=60, largest=60)
    assert len(fitted.dropped) == 4
    assert fitted.note() == (
        f"history: turns 1 to 4 of 5 were dropped ({fitted.tokens_before - fitted.tokens} of {fitted.tokens_before} "
        'tokens), from user: "user 0 red red red" to assistant: "assistant 3 red red red"'
    )


def test_a_last_turn_may_use_the_answers_share_when_it_stands_alone():
    document = dialogue([2, 2, 30])
    alone = count(Document("talk", "chat", "text", document.turns[-1:]))
    assert fit_history(document, count, room=alone - 5, largest=alone).tokens == alone
    with pytest.raises(DocumentError, match='last turn alone .user: "user 2 red .*shorten it'):
        fit_history(document, count, room=alone - 5, largest=alone - 1)


TURNS = [
    {"role": "user", "parts": [{"speech": "a.wav"}, {"text": "draw it"}]},
    {"role": "assistant", "parts": [{"text": "a circle"}, {"image": "a.png"}]},
]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TURNS, indent=1),
        json.dumps({"turns": TURNS}),
        "".join(json.dumps(t) + "\n" for t in TURNS),
        "\n" + "".join(json.dumps(t) + "\n\n" for t in TURNS),
        "\ufeff" + json.dumps(TURNS),
        "\ufeff" + "".join(json.dumps(t) + "\r\n" for t in TURNS),
    ],
    ids=["list", "object", "lines", "blank lines", "byte order mark", "mark and lines of DOS"],
)
def test_all_forms_of_a_history_file(tmp_path, text):
    (tmp_path / "talk.json").write_bytes(text.encode())
    turns = read_history(tmp_path / "talk.json")
    assert [t.role for t in turns] == ["user", "assistant"]
    assert turns[0].parts[0].value == str(tmp_path / "a.wav")
    assert turns[1].parts == (Part(Modality.TEXT, "a circle"), Part(Modality.IMAGE, str(tmp_path / "a.png")))
    write_history(tmp_path / "copy.jsonl", turns)
    assert read_history(tmp_path / "copy.jsonl") == turns
    assert '"a.wav"' in (tmp_path / "copy.jsonl").read_text()


def test_one_turn_and_no_turn(tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps(TURNS[0]))
    assert len(read_history(tmp_path / "one.jsonl")) == 1
    (tmp_path / "none.jsonl").write_text("\n")
    assert read_history(tmp_path / "none.jsonl") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"role": "user", "parts": [{"text": "a"}]}\n{"role": ', "talk.jsonl:2: malformed JSON"),
        ('"hello"', "expected a list of turns"),
        ("[" * 100_000, "talk.jsonl:1: malformed JSON"),  # deeper than Python's JSON reads
        ('[{"role": "god", "parts": [{"text": "a"}]}]', "turn 0 has role 'god'"),
        ('[{"role": "user", "parts": [{"smell": "a"}]}]', "exactly one of text, image or speech"),
    ],
)
def test_a_bad_history_is_named(tmp_path, text, message):
    (tmp_path / "talk.jsonl").write_text(text)
    with pytest.raises(DocumentError, match=message):
        read_history(tmp_path / "talk.jsonl")


def test_a_missing_history_is_named(tmp_path):
    with pytest.raises(DocumentError, match="gone.json: cannot be read"):
        read_history(tmp_path / "gone.json")


def test_media_that_are_no_paths_are_described():
    parts = (Part(Modality.IMAGE, np.zeros((4, 5, 3), np.uint8)), Part(Modality.SPEECH, b"RIFF"))
    rate = Part(Modality.SPEECH, (np.zeros(7, np.float32), 8000))
    assert turn_to_json(Turn("user", (*parts, rate)))["parts"] == [
        {"image": "<array uint8[4, 5, 3]>"},
        {"speech": "<4 bytes>"},
        {"speech": "<array float32[7]>"},
    ]
