"""The report page from the files of a run: what it shows, and what it says when a file is missing or damaged."""

import json
import shutil

import pytest
import tiny_data

from ar_omni_jax.config import base_config
from ar_omni_jax.evaluation import report
from ar_omni_jax.evaluation.toy_tasks import TaskResult

METRICS = [
    {"step": 5, "kind": "train", "nll/text": 3.0, "nll/image": 2.5, "perceptual": 40.0},
    {"step": 5, "kind": "validation", "nll/text": 3.5, "nll/image": 2.0, "nll/speech": None},
    {"step": 9, "kind": "train", "nll/text": 2.0, "nll/image": 1.5, "perceptual": 4.0},
    {"step": 9, "kind": "validation", "nll/text": 2.5, "nll/image": 1.0, "nll/speech": None},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's files, as small as can be: one picture to draw, which the model did not."""
    run = tmp_path_factory.mktemp("finished") / "run"
    tiny_data.make_packed(run)
    config = base_config()
    config.model.update(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32)
    write(run / "train" / "config.json", config.to_dict())
    (run / "train" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in METRICS))
    example = {"id": "t2i-0", "truth": "a red cross <here>", "answer": ""}
    details = {"shapes": 12.5, "background": 25.0}
    result = TaskResult("t2i", 34.56, 30.0, 40.0, [example], details).to_dict()
    write(
        run / "evaluation" / "evaluation.json",
        {
            "step": 9,
            "data": str(run / "toy" / "test.jsonl"),
            "documents": {"t2i": 1},
            "systems": {"trained model": {"t2i": result}, "untrained model": {"t2i": result | {"score": 1.25}}},
        },
    )
    write(run / "evaluation" / "t2i" / "000.json", {"files": []})
    (run / "evaluation" / "t2i" / "000.png").write_bytes(b"of an earlier evaluation")
    turns = [{"role": "user", "parts": [{"text": "a"}]}, {"role": "assistant", "parts": [{"image": "true.png"}]}]
    write(run / "toy" / "test.jsonl", {"id": "t2i-0", "turns": turns}, indent=None)
    (run / "toy" / "true.png").write_bytes(b"picture")
    return run


def write(path, content, indent=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent) + "\n")


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may damage; it stands in another place than the one evaluation.json names."""
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    path = moved / "evaluation" / "evaluation.json"
    path.write_text(path.read_text().replace(str(finished), "/somewhere/else"))
    return moved


def test_the_page_of_a_run_that_was_moved(run):
    assert report.main([f"--run={run}"]) == 0
    page = (run / "report" / "index.html").read_text()
    for text in ("34.6 %", "1.2 %", "12.5", "held-out documents", "layers of width 16", "9 steps on 73,728 tokens"):
        assert text in " ".join(page.split()), text
    assert "a red cross &lt;here&gt;" in page and "made_image" not in page
    assert "ASR word error" not in page, "explains what it does not show"
    data = json.loads((run / "report" / "report.json").read_text())
    rows = {row["modality"]: row for row in data["losses"]}
    assert set(rows) == {"text", "image"}
    assert (rows["text"]["first"], rows["text"]["first_step"], rows["text"]["last_step"]) == (3.5, 5, 9)
    assert rows["text"]["ratio"] == 2.5 / rows["text"]["unigram"]
    for name in ("losses.png", "perceptual.png", data["samples"]["t2i"][0]["assistant_image"]):
        assert name in page and (run / "report" / name).stat().st_size > 0


def test_a_picture_of_an_earlier_evaluation_is_not_shown(run):
    data = report.build(run, run / "report", 3)
    assert "made_image" not in data["samples"]["t2i"][0]
    write(run / "evaluation" / "t2i" / "000.json", {"files": ["000.png"]})
    data = report.build(run, run / "report", 3)
    assert (run / "report" / data["samples"]["t2i"][0]["made_image"]).read_bytes() == b"of an earlier evaluation"


def cut_line(path):
    path.write_text(path.read_text() + '{"step": 9, "ki')


def spoilt_line(path):
    path.write_text('{"step": \n' + path.read_text())


def test_a_line_that_is_being_written_does_not_hinder(run):
    cut_line(run / "train" / "metrics.jsonl")
    train, validation = report.read_metrics(run / "train" / "metrics.jsonl")
    assert [len(train), len(validation)] == [2, 2]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train/metrics.jsonl", spoilt_line, "metrics.jsonl: line 1 is not JSON"),
        ("train/metrics.jsonl", lambda path: path.unlink(), "metrics.jsonl is missing: train first"),
        ("train/config.json", lambda path: path.unlink(), "config.json is missing: run python -m ar_omni_jax.main"),
        ("evaluation/evaluation.json", cut_line, "evaluation.json is not JSON"),
        ("evaluation/evaluation.json", lambda path: path.unlink(), "is missing: run python -m ar_omni_jax.evaluate"),
        ("packed/dataset.json", lambda path: path.unlink(), "dataset.json is missing"),
        ("toy/test.jsonl", lambda path: path.unlink(), "neither /somewhere/else/toy/test.jsonl nor"),
        ("toy/test.jsonl", lambda path: path.write_text("\n"), "has no document 't2i-0' any more"),
        ("toy/true.png", lambda path: path.unlink(), "true.png"),
    ],
)
def test_what_is_missing_or_damaged_is_named(run, capsys, file, damage, message):
    damage(run / file)
    assert report.main([f"--run={run}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
