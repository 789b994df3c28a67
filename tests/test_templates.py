"""Templates: the strings of both sets, prompts as prefixes, roles, and the way back from generated tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax import templates
from ar_omni_jax.documents import TASKS, Document, DocumentError, Part, Role, Turn
from ar_omni_jax.vocabulary import Modality, chameleon_vocabulary, compact_vocabulary

VOCABULARY = compact_vocabulary(256, 16, 32, (2, 2), name="tiny")
IMAGE = np.array([3, 0, 15, 7], np.int32)
SPEECH = np.array([31, 0, 5], np.int32)


def encode(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def decode(pieces):
    return bytes(np.asarray(pieces, np.uint8)).decode(errors="replace")


def turn(role, *parts):
    kinds = {"I": Modality.IMAGE, "S": Modality.SPEECH}
    return Turn(role, tuple(Part(kinds[p], p) if p in kinds else Part(Modality.TEXT, p) for p in parts))


def document(task, *turns):
    """Turns are tuples of parts, user first; "I" is an image, "S" an utterance, the rest text."""
    roles = ("user", "assistant")
    return Document("d", task, "speech", tuple(turn(roles[i % 2], *parts) for i, parts in enumerate(turns)))


def codes_of(doc):
    return [IMAGE if part.modality == Modality.IMAGE else SPEECH for part in doc.media()]


def tokenize(doc, template="paper"):
    return templates.tokenize(doc, template, VOCABULARY, encode, codes_of(doc))


def written(doc, template):
    """The stream as text: markers in angle brackets, [I] and [S] for media."""
    names = {v: k for k, v in VOCABULARY.markers.items()}
    out, tokens = "", tokenize(doc, template)
    for span in tokens.spans:
        ids = tokens.tokens[span.start : span.end]
        if span.modality == Modality.TEXT:
            out += decode(VOCABULARY.to_codes(Modality.TEXT, ids))
        elif span.modality == Modality.MARKER:
            out += "".join(f"<{names[i]}>" for i in ids.tolist())
        else:
            out += f"[{span.modality.name[0]}]"
    return out


PAPER = [
    (document("t2i", ["a cat"], ["I"]),
     "<bos> USER: Create an image for: a cat<eoh> ASSISTANT:<boi>[I]<eoi><eos>"),
    (document("asr", ["S"], ["hello"]),
     "<bos> USER: Transcribe the audio.<boa>[S]<eoa><eoh> ASSISTANT: hello<eos>"),
    (document("tts", ["hello"], ["S"]),
     "<bos> USER: Convert the text to speech: hello<eoh> ASSISTANT:<boa>[S]<eoa><eos>"),
    (document("caption", ["I"], ["a cat"]),
     "<bos> USER: Describe the image.<boi>[I]<eoi><eoh> ASSISTANT: a cat<eos>"),
    (document("chat_image", ["S"], ["draw a cat", "I"]),
     "<bos> USER:<boa>[S]<eoa> Transcribe the audio and generate an image for the transcript.<eoh>"
     " ASSISTANT: draw a cat<boi>[I]<eoi><eom>"),
    (document("chat_speech", ["S"], ["fine"]),
     "<bos> USER:<boa>[S]<eoa> Reply in text.<eoh> ASSISTANT: fine<eom>"),
    (document("text", ["once upon"]), "<bos> once upon<eos>"),
    (document("chat_image", ["S"], ["draw a cat", "I"], ["S"], ["a cat"]),
     "<bos> USER:<boa>[S]<eoa> Transcribe the audio and generate an image for the transcript.<eoh>"
     " ASSISTANT: draw a cat<boi>[I]<eoi><eom><bos> USER:<boa>[S]<eoa> Reply in text.<eoh> ASSISTANT: a cat<eom>"),
    (document("chat", ["hi", "I"], ["S"], ["more"], ["no"]),
     "<bos> USER: hi<boi>[I]<eoi><eoh> ASSISTANT:<boa>[S]<eoa><eom><bos> USER: more<eoh> ASSISTANT: no<eom>"),
]  # fmt: skip
RELEASED = [
    (document("t2i", ["Draw.", "a cat"], ["I"]),
     "<bos>USER:Draw. This is input: a cat<eoh> GPT:<boi>[I]<eoi><eos>"),
    (document("tts", ["Say.", "hello"], ["S"]), "<bos>USER:Say.This is input: hello<eoh>GPT:<boa>[S]<eoa><eos>"),
    (document("caption", ["I", "Look."], ["a cat"]), "<bos>USER:<boi>[I]<eoi>Look.<eoh>GPT:a cat<eos>"),
    (document("asr", ["S", "Hear."], ["hello"]), "<bos>USER:Hear.<boa>[S]<eoa><eoh>GPT:hello<eos>"),
    (document("chat_speech", ["I", "S", "Reply."], ["fine"], ["S", "Reply."], ["no"]),
     "<bos>USER:<boi>[I]<eoi><boa>[S]<eoa>Reply.<eoh>GPT:fine<eom>USER:<boa>[S]<eoa>Reply.<eoh>GPT:no<eom>"),
    (document("text", [" verbatim "]), "<bos> verbatim <eos>"),
]  # fmt: skip


@pytest.mark.parametrize("doc,expected", PAPER)
def test_paper_strings(doc, expected):
    assert written(doc, "paper") == expected


@pytest.mark.parametrize("doc,expected", RELEASED)
def test_released_strings(doc, expected):
    assert written(doc, "released") == expected


def test_every_task_has_a_form_in_every_set():
    for template in templates.TEMPLATE_SETS.values():
        assert set(template.forms) == set(TASKS) - {"text"}


def test_published_ids():
    """With the published layout the stream has the published marker ids, begin of image above end of image."""
    doc = document("caption", ["I"], ["x"])
    vocabulary = chameleon_vocabulary((2, 2))
    tokens = templates.tokenize(doc, "released", vocabulary, lambda text: np.zeros(1, np.int32), [IMAGE]).tokens
    text = 16384
    assert tokens.tolist() == [0, text, 8197, 7, 4, 19, 11, 8196, text, 12830, text, text, 2]


def test_roles_and_spans():
    tokens = tokenize(document("asr", ["S"], ["hello"]))
    assert [s.start for s in tokens.spans][1:] == [s.end for s in tokens.spans][:-1]
    assert tokens.spans[-1].end == len(tokens.tokens)
    answer = [s for s in tokens.spans if s.role == Role.RESPONSE]
    assert [s.modality for s in answer] == [Modality.TEXT, Modality.MARKER]
    assert decode(VOCABULARY.to_codes(Modality.TEXT, tokens.tokens[answer[0].start : answer[0].end])) == " hello"
    chat = tokenize(document("chat", ["a"], ["b"], ["c"], ["d"]))
    roles = [s.role for s in chat.spans if s.modality == Modality.TEXT]
    assert roles == [Role.PROMPT, Role.PROMPT, Role.RESPONSE] * 2  # question, label, answer
    plain = tokenize(document("text", ["a"]))
    assert [(s.role, s.modality) for s in plain.spans] == [
        (Role.PROMPT, Modality.MARKER), (Role.RESPONSE, Modality.TEXT), (Role.RESPONSE, Modality.MARKER)
    ]  # fmt: skip


# A document of each task, from (text, text) drawn by hypothesis.
SHAPES = {
    "text": lambda a, b: [([a])],
    "caption": lambda a, b: [["I"], [a]],
    "t2i": lambda a, b: [[a], ["I"]],
    "asr": lambda a, b: [["S", b], [a]],
    "tts": lambda a, b: [[b, a], ["S"]],
    "chat_speech": lambda a, b: [["S"], [a], ["S"], [b]],
    "chat_image": lambda a, b: [["S"], [a, "I"], ["S"], [b]],
    "chat": lambda a, b: [[a, "I"], ["S", b, "I"], [b], [a]],
    "speech_to_image": lambda a, b: [["S"], ["I"]],
    "image_to_speech": lambda a, b: [["I"], ["S"]],
}
texts = st.text(min_size=1, max_size=20).filter(lambda s: s.strip() and s not in ("I", "S"))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TASKS), st.sampled_from(sorted(templates.TEMPLATE_SETS)), texts, texts)
def test_prompt_is_a_strict_prefix_and_the_answer_comes_back(task, template, a, b):
    doc = document(task, *SHAPES[task](a, b))
    if task == "text":
        doc = Document("d", task, "text", (Turn("assistant", doc.turns[0].parts),))
    question, whole = templates.without_answer(doc), tokenize(doc, template).tokens
    start = templates.prompt(doc, template, VOCABULARY, encode, codes_of(question))
    assert len(start) < len(whole) and np.array_equal(start, whole[: len(start)])
    response = templates.parse_response(whole[len(start) :], VOCABULARY)
    assert response.ended and response.problems == []
    expected = doc.turns[-1].parts
    assert [kind for kind, _ in response] == [part.modality for part in expected]
    for (kind, codes), part in zip(response, expected, strict=True):
        if kind == Modality.TEXT:
            assert templates.response_text(codes, decode) == part.value.strip()
        else:
            assert np.array_equal(codes, IMAGE if kind == Modality.IMAGE else SPEECH)


def test_text_prompts():
    bos = VOCABULARY.marker("bos")
    nothing = Document("d", "text", "text", ())
    assert templates.prompt(nothing, "paper", VOCABULARY, encode).tolist() == [bos]
    started = templates.prompt(document("text", ["once"]), "paper", VOCABULARY, encode)
    assert np.array_equal(started, tokenize(document("text", ["once upon"])).tokens[: len(started)])


BAD = [
    (document("caption", ["a cat"], ["a dog"]), "image part"),
    (document("t2i", ["I"], ["I"]), "text part"),
    (document("asr", ["S"], ["I"]), "must be text, not image"),
    (document("asr", ["S", "a", "b"], ["x"]), "at most one text"),
    (document("asr", ["S"], ["x"], ["S"], ["y"]), "one question and one answer"),
    (document("text", ["a", "b"]), "one turn with one text"),
    (document("caption"), "no turns"),
    (Document("d", "chat", "text", (turn("assistant", "a"),)), "alternate"),
    (document("caption", ["I"], [" \n"]), "empty"),
    (Document("d", "dance", "text", (turn("user", "a"),)), "unknown task"),
]


@pytest.mark.parametrize("doc,message", BAD)
def test_a_document_that_does_not_fit_its_task_is_refused(doc, message):
    with pytest.raises(DocumentError, match=message):
        tokenize(doc)


def test_codes_are_checked():
    doc = document("caption", ["I"], ["x"])
    with pytest.raises(DocumentError, match="3 codes.*needs 4"):
        templates.tokenize(doc, "paper", VOCABULARY, encode, [IMAGE[:3]])
    with pytest.raises(DocumentError, match="1 images and utterances, but codes of 0"):
        templates.tokenize(doc, "paper", VOCABULARY, encode, [])
    with pytest.raises(DocumentError, match="without any code"):
        templates.tokenize(document("asr", ["S"], ["x"]), "paper", VOCABULARY, encode, [SPEECH[:0]])
    with pytest.raises(DocumentError, match="unknown template set 'papers'"):
        tokenize(doc, "papers")


def marker(name):
    return VOCABULARY.marker(name)


def test_parse_reports_what_is_wrong():
    image = VOCABULARY.to_ids(Modality.IMAGE, IMAGE).tolist()
    text = VOCABULARY.to_ids(Modality.TEXT, encode("ab")).tolist()

    def parse(*tokens):
        return templates.parse_response(np.array(tokens), VOCABULARY)

    unclosed = parse(*text, marker("boi"), *image[:3])
    assert [(k, len(c)) for k, c in unclosed] == [(Modality.TEXT, 2), (Modality.IMAGE, 3)]
    assert "not closed" in unclosed.problems[0] and "3 codes, a whole one has 4" in unclosed.problems[1]
    assert not unclosed.ended
    foreign = parse(marker("boi"), *image, text[0], marker("eoa"), marker("eoi"), marker("eom"), *text)
    assert [k for k, _ in foreign] == [Modality.IMAGE] and np.array_equal(foreign[0][1], IMAGE)
    assert len(foreign.problems) == 2 and foreign.ended
    assert len(parse(marker("boa"), marker("eoa"))) == 0 and "without codes" in parse(marker("boa")).problems[-1]
    stray = parse(*image, *text)
    assert [k for k, _ in stray] == [Modality.IMAGE, Modality.TEXT] and "without an opening" in stray.problems[0]
    assert parse(marker("pad"), *text, marker("pad")).problems == []
    assert "outside the vocabulary" in parse(-1, VOCABULARY.size).problems[1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-2, VOCABULARY.size + 2), max_size=40))
def test_parse_never_fails_on_any_tokens(tokens):
    response = templates.parse_response(np.array(tokens, np.int64), VOCABULARY)
    kept = sum(len(codes) for _, codes in response)
    assert kept <= len(tokens)
    for kind, codes in response:
        assert codes.dtype == np.int32 and kind != Modality.MARKER
        VOCABULARY.to_ids(kind, codes)
