"""Documents to judge: a manifest that cannot be judged is named with its line."""

import json

import pytest

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.evaluation.toy_tasks import load_documents

ASR = {"id": "a", "task": "asr", "turns": [[{"speech": "a.wav"}], [{"text": "a red circle"}]]}
CAPTION = {"id": "b", "task": "caption", "turns": [[{"image": "b.png"}], [{"text": "a red circle"}]]}


def write(path, *lines):
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_the_first_documents_of_each_task_in_order(tmp_path):
    scene = CAPTION | {"meta": {"scene": {}}}
    lines = [json.dumps(r) for r in (ASR, scene, ASR | {"id": "c"}, ASR | {"id": "d"})]
    found = load_documents(write(tmp_path / "m.jsonl", lines[0], "", *lines[1:]), 2, ("caption", "asr"))
    assert {task: [d.id for d in rows] for task, rows in found.items()} == {"caption": ["b"], "asr": ["a", "c"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": ', "line 2: must be one JSON object"),
        ("[1]", "line 2: must be one JSON object"),
        (json.dumps(CAPTION), "line 2: meta.scene is missing"),
        (json.dumps(ASR | {"turns": []}), "line 2: 'turns' must be"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(DocumentError, match=message):
        load_documents(write(tmp_path / "m.jsonl", json.dumps(ASR), line), 9)


def test_nothing_to_judge_is_an_error(tmp_path):
    with pytest.raises(DocumentError, match="no document of task tts"):
        load_documents(write(tmp_path / "m.jsonl", json.dumps(ASR)), 9, ("tts",))
