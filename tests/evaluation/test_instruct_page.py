"""The page of an instruction tuning run from its files, and what it says when one is missing."""

import json

import pytest
import tiny_data

from ar_omni_jax.config import base_config
from ar_omni_jax.evaluation import instruct_page
from ar_omni_jax.evaluation.results import TaskResult

METRICS = [
    {"step": 5, "kind": "train", "nll/text": 3.0, "perceptual": 40.0},
    {"step": 5, "kind": "validation", "nll/text": 3.5, "nll/image": None},
]


def write(path, content, indent=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent) + "\n")


def result(task, score, example, metric="correct", **more):
    made = TaskResult(task, score, score - 5, score + 5, [example], metric=metric, title=f"title of {task}", **more)
    return made.to_dict()


@pytest.fixture
def run(tmp_path):
    """One spoken dialogue about a picture, answered in speech, before and after; one caption."""
    run = tmp_path / "run"
    tiny_data.make_packed(run)
    config = base_config()
    config.model.update(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32)
    write(run / "train" / "config.json", config.to_dict())
    (run / "train" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in METRICS))
    example = {"id": "d-0", "truth": "it is red", "answer": "it is <blue>", "right": False, "problems": []}
    for name, score in (("dialogues", 61.25), ("dialogues_before", 12.5)):
        found = {"chat_spoken": result("chat_spoken", score, example, details={"color": score})}
        write_evaluation(run, name, 9, {"trained model": found, "another document's answer": found})
    for name, score in (("one_shot", 80.0), ("one_shot_before", 90.0)):
        found = {"caption": result("caption", score, {"id": "c", "truth": "", "answer": ""}, "attributes")}
        write_evaluation(run, name, 9, {"trained model": found})
    answers = run / "evaluation" / "dialogues" / "chat_spoken"
    write(answers / "000.json", {"files": ["000.wav"]})
    (answers / "000.wav").write_bytes(b"made")
    turns = [
        {"role": "user", "parts": [{"image": "p.png"}, {"speech": "q.wav"}]},
        {"role": "assistant", "parts": [{"speech": "a.wav"}]},
    ]
    said = {"q.wav": "what color & so on", "a.wav": "it is red"}
    meta = {"speech": [{"path": path, "transcript": words} for path, words in said.items()]}
    write(run / "toy" / "test.jsonl", {"id": "d-0", "task": "chat", "turns": turns, "meta": meta}, indent=None)
    for name in ("p.png", "q.wav", "a.wav"):
        (run / "toy" / name).write_bytes(name.encode())
    return run


def write_evaluation(run, name, step, systems):
    documents = {task: 1 for task in systems["trained model"]}
    data = {"step": step, "data": str(run / "toy" / "test.jsonl"), "documents": documents, "systems": systems}
    write(run / "evaluation" / name / "evaluation.json", data | {"decoding": {"temperature": 0.3}})


def test_scores_before_and_after_and_whole_dialogues(run, capsys):
    assert instruct_page.main([f"--run={run}"]) == 0
    page = " ".join((run / "report" / "index.html").read_text().split())
    for text in ("after instruction tuning", "before it", "61.2 % [56.2, 66.2]", "12.5 % [7.5, 17.5]", "90.0 %"):
        assert text in page, text
    for text in ("title of chat_spoken, by kind", "what color &amp; so on", "it is &lt;blue&gt;", "model (wrong)"):
        assert text in page, text
    data = json.loads((run / "report" / "report.json").read_text())
    (dialogue,) = data["dialogues"]["chat_spoken"]
    (image, question), (answer,) = dialogue["turns"][0][1], dialogue["turns"][1][1]
    copied = {image[1]: b"p.png", question[1]: b"q.wav", answer[1]: b"a.wav", dialogue["made"][0][1]: b"made"}
    for name, content in copied.items():
        assert name in page and (run / "report" / name).read_bytes() == content
    told = capsys.readouterr().out
    assert "after instruction tuning   61.2 %" in told and "before it" in told


def test_a_task_without_chance_has_a_dash(run, capsys):
    for name in ("dialogues", "dialogues_before"):
        path = run / "evaluation" / name / "evaluation.json"
        found = json.loads(path.read_text())
        found["systems"]["another document's answer"] = {}
        write(path, found)
    assert instruct_page.main([f"--run={run}"]) == 0
    group = json.loads((run / "report" / "report.json").read_text())["groups"][0]
    assert group["table"]["rows"]["another document's answer"] == ["–"]
    assert "another document's answer" not in group["details"][0]["rows"]
    assert "another document's answer  –" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["dialogues", "one_shot_before"])
def test_a_missing_part_is_named_with_its_command(run, missing, capsys):
    (run / "evaluation" / missing / "evaluation.json").unlink()
    assert instruct_page.main([f"--run={run}"]) == 1
    told = capsys.readouterr().err
    assert f"{missing}/evaluation.json is missing" in told and "run_instruct.sh" in told


def test_a_manifest_of_other_dialogues_is_refused(run, capsys):
    path = run / "toy" / "test.jsonl"
    path.write_text(path.read_text().replace("d-0", "d-1"))
    assert instruct_page.main([f"--run={run}"]) == 1
    assert "has no document 'd-0' any more" in capsys.readouterr().err
