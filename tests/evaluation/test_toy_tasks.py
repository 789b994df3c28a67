"""Documents to judge: a manifest that cannot be judged is named with its line."""

import json

import pytest

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.evaluate import main, remove_answers
from ar_omni_jax.evaluation.file_answer import FileAnswer
from ar_omni_jax.evaluation.manifest import (
    DIALOGUE_TASKS,
    JUDGED_TASKS,
    fingerprint,
    has_truth,
    load_documents,
    references,
    truth_text,
)

ASR = {"id": "a", "task": "asr", "turns": [[{"speech": "a.wav"}], [{"text": "a red circle"}]]}
CAPTION = {"id": "b", "task": "caption", "turns": [[{"image": "b.png"}], [{"text": "a red circle"}]]}
CHAT = {"id": "d", "task": "chat", "turns": [[{"text": "What colour?"}], [{"text": "red"}]]}


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
        (json.dumps(CAPTION | {"turns": CAPTION["turns"][:1]}), "line 2: no caption to compare with"),
        (json.dumps(ASR | {"turns": [[{"speech": "a.wav"}], [{"text": "…"}]]}), "line 2: the text has no words"),
        (json.dumps(ASR | {"turns": []}), "line 2: 'turns' must be"),
        (json.dumps(ASR | {"task": ["asr"]}), "line 2: 'task' must be a word"),
        (json.dumps(ASR | {"meta": ["a"]}), "line 2: 'meta' must be an object"),
        # A text would be taken for a list of letters.
        (json.dumps(CAPTION | {"meta": {"references": "a dog"}}), "line 2: meta.references must be a list of texts"),
        (
            json.dumps(CAPTION | {"meta": {"references": ["a dog", " "]}}),
            "line 2: meta.references .* none of them empty",
        ),
        (json.dumps(CHAT | {"meta": {"accepted": "red"}}), "line 2: meta.accepted must be a list of texts"),
        ("[" * 100_000, "line 2: must be one JSON object"),
        (b"\xff\xfe", "line 2: must be one JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "m.jsonl", json.dumps(ASR))
    path.write_bytes(path.read_bytes() + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(DocumentError, match=message):
        load_documents(path, 9, (*JUDGED_TASKS, *DIALOGUE_TASKS))


def test_nothing_to_judge_is_an_error(tmp_path):
    with pytest.raises(DocumentError, match="no document of task tts"):
        load_documents(write(tmp_path / "m.jsonl", json.dumps(ASR)), 9, ("tts",))


def test_captions_of_one_picture_are_its_references(tmp_path):
    other = {"id": "c", "turns": [[{"image": "b.png"}], [{"text": "a circle"}]]}
    third = {"id": "d", "turns": [[{"image": "d.png"}], [{"text": "a square"}]]}
    given = {"id": "e", "turns": [[{"image": "b.png"}]], "meta": {"references": ["one", "two"]}}
    lines = [json.dumps(CAPTION | more) for more in ({}, other, third, given, other | {"id": "f"})]
    path = write(tmp_path / "m.jsonl", *lines)
    rows = load_documents(path, 0, ("caption",))["caption"]
    assert [d.id for d in rows] == ["b", "d", "e"] and all(map(has_truth, rows))
    assert [references(d) for d in rows] == [["a red circle", "a circle", "a circle"], ["a square"], ["one", "two"]]
    (first,) = load_documents(path, 1, ("caption",))["caption"]  # the limit counts pictures
    assert references(first) == references(rows[0])


def test_an_instruction_is_no_part_of_the_text(tmp_path):
    tts = {"id": "t", "task": "tts", "turns": [[{"text": "Say this:"}, {"text": "a circle"}]]}
    asr = ASR | {"turns": [[{"text": "Write this down."}, {"speech": "a.wav"}], [{"text": "a red circle"}]]}
    rows = load_documents(write(tmp_path / "m.jsonl", json.dumps(tts), json.dumps(asr)), 9)
    assert truth_text(rows["tts"][0]) == "a circle" and not has_truth(rows["tts"][0])
    assert truth_text(rows["asr"][0]) == "a red circle"


def test_a_broken_file_is_named(tmp_path):
    for name, read in (("a.wav", lambda a: a.waves(16000)), ("b.png", lambda a: a.images)):
        (tmp_path / name).write_bytes(b"RIFF....WAVE")
        with pytest.raises(DocumentError, match=rf"{name} cannot be read as (speech|a picture)"):
            read(FileAnswer("", *[(tmp_path / name,)] * 2))


def test_a_missing_file_is_named_before_anything_is_decoded(tmp_path):
    rows = load_documents(write(tmp_path / "m.jsonl", json.dumps(ASR)), 9, ("asr",))["asr"]
    with pytest.raises(DocumentError, match=r"document 'a': .*a\.wav cannot be read"):
        fingerprint(rows, tmp_path)
    odd = json.dumps(ASR | {"turns": [[{"speech": "a\0.wav"}], [{"text": "a"}]]})
    rows = load_documents(write(tmp_path / "m.jsonl", odd), 9, ("asr",))["asr"]
    with pytest.raises(DocumentError, match="document 'a': .* cannot be read"):
        fingerprint(rows, tmp_path)


def test_only_answers_of_an_earlier_evaluation_are_removed(tmp_path):
    remove_answers(tmp_path / "nothing yet")
    for name in ("000.png", "000.json", "1234-1.wav", "mine.png", "000.md", "00.png"):
        (tmp_path / name).touch()
    remove_answers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.png", "000.md", "00.png"}


def test_one_document_is_enough(tmp_path, capsys):
    path = write(tmp_path / "m.jsonl", *(json.dumps(ASR | {"id": name}) for name in "ab"))
    (tmp_path / "a.wav").touch()
    command = [f"--data={path}", f"--checkpoint={tmp_path}", "--task=asr"]
    for more in (["--limit=2"], ["--limit=1"], ["--limit=1", "--no_baselines"]):  # these get as far as the checkpoint
        assert main([*command, *more]) == 1
        assert "holds no checkpoint" in capsys.readouterr().err
