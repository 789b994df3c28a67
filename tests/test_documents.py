"""Documents from manifest lines, token classes, and errors that name file, turn and key."""

import numpy as np
import pytest

from ar_omni_jax import documents
from ar_omni_jax.documents import DocumentError, Part, Role, Span, TokenDocument, document_from_json
from ar_omni_jax.vocabulary import Modality

CAPTION = {"id": "a", "task": "caption", "turns": [[{"image": "a.png"}], [{"text": "a cat"}]]}


def test_bare_turns_alternate_from_the_user_and_objects_say_their_role():
    doc = document_from_json(CAPTION, source="manifest")
    assert [t.role for t in doc.turns] == ["user", "assistant"]
    assert doc.media() == [Part(Modality.IMAGE, "a.png")] and doc.group == "image" and doc.source == "manifest"
    line = {"id": 7, "task": "text", "turns": [{"role": "assistant", "parts": [{"text": "x"}]}], "meta": {"k": 1}}
    doc = document_from_json(line)
    assert (doc.id, doc.turns[0].role, doc.group, doc.meta) == ("7", "assistant", "text", {"k": 1})


def test_group_is_by_the_media_unless_given():
    turns = [[{"speech": "a.wav"}], [{"text": "x"}, {"image": "a.png"}]]
    assert document_from_json({"id": "a", "task": "chat_image", "turns": turns}).group == "speech"
    assert document_from_json({"id": "a", "task": "chat_image", "turns": turns, "group": "image"}).group == "image"


BAD = [
    ({"id": None}, "key 'id' is missing"),
    ({"task": None}, "key 'task' is missing"),
    ({"turns": None}, "key 'turns' is missing"),
    ({"task": "captions"}, "unknown task 'captions'.*caption"),
    ({"turns": []}, "non-empty list"),
    ({"turns": "x"}, "turn 0 must be a list"),
    ({"turns": 3}, "non-empty list"),
    ({"turns": [3]}, "turn 0 must be a list of parts, got 3"),
    ({"turns": [{"role": "user", "parts": None}]}, "turn 0 must be a list"),
    ({"turns": [[]]}, "turn 0 has no parts"),
    ({"turns": [{"role": "system", "parts": [{"text": "x"}]}]}, "role 'system'"),
    ({"turns": [[{"image": "a.png"}], [{"text": " "}]]}, "turn 1: empty or non-string text"),
    ({"turns": [[{"image": "a.png", "text": "x"}]]}, "exactly one of text, image or speech"),
    ({"turns": [[{"video": "x"}]]}, "exactly one of"),
    ({"group": "video"}, "group 'video'"),
]


@pytest.mark.parametrize("change,message", BAD)
def test_a_bad_line_is_refused_with_its_place(change, message):
    line = {k: v for k, v in (CAPTION | change).items() if not (v is None and k in CAPTION)}
    with pytest.raises(DocumentError, match=f"^m.jsonl: line 3: .*{message}"):
        document_from_json(line, where="m.jsonl: line 3")


def test_token_class_is_a_bijection_of_task_role_and_modality():
    assert len(documents.TASKS) <= 32
    seen = set()
    for task in range(len(documents.TASKS)):
        for role in Role:
            for modality in Modality:
                value = int(documents.token_class(task, role, modality))
                assert documents.split_token_class(value) == (task, role, modality)
                seen.add(value)
    assert len(seen) == len(documents.TASKS) * 8 and max(seen) < documents.NUM_TOKEN_CLASSES


def test_the_order_of_tasks_is_part_of_the_format():
    assert documents.TASKS[:8] == ("text", "caption", "t2i", "asr", "tts", "chat_speech", "chat_image", "chat")
    assert documents.TASKS[8:10] == ("speech_to_image", "image_to_speech")


def test_classes_follow_the_spans():
    spans = (Span(Modality.MARKER, Role.PROMPT, 0, 1), Span(Modality.TEXT, Role.RESPONSE, 1, 3))
    doc = TokenDocument("a", "asr", "speech", np.array([0, 5, 6], np.int32), spans)
    asr = documents.task_index("asr")
    assert doc.classes().dtype == np.uint8
    assert doc.classes().tolist() == [asr * 8 + 3, asr * 8 + 4, asr * 8 + 4]
