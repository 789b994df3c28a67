"""The command on any manifest: figures, files, going on after a kill, and what it refuses."""

import json

import jiwer
import numpy as np
import pytest
import soundfile
import tiny_judges
from PIL import Image

from ar_omni_jax.evaluate import main
from ar_omni_jax.evaluation.metrics.caption_tokens import caption_tokens
from ar_omni_jax.evaluation.metrics.cider import cider_d
from ar_omni_jax.evaluation.record_file import RecordFile
from ar_omni_jax.predictor import Predictor

TEXTS = [f"{' '.join(tiny_judges.WORDS[k:])}, number {k + 20}" for k in range(5)]
JUDGES = ["--recognizer=tiny_judges:Counter", "--clip=tiny_judges:Colors", "--fid=tiny_judges:Colors"]


@pytest.fixture
def data(tmp_path):
    """A manifest of all four tasks, five documents each; each picture has two captions."""
    lines = []
    for k, text in enumerate(TEXTS):
        soundfile.write(tmp_path / f"{k}.wav", np.full(100 * k + 150, 0.25), 16000)
        Image.new("RGB", (10, 10), (200 - 30 * k, 20 * k, 50)).save(tmp_path / f"{k}.png")
        image, speech = [{"image": f"{k}.png"}], [{"speech": f"{k}.wav"}]
        says, more = [{"text": text}], [{"text": f"there is a dog, no. {k}"}]
        turns = {"asr": (speech, says), "tts": (says, speech), "t2i": (says, image), "caption": (image, says)}
        lines += [{"id": f"{task}-{k}", "task": task, "turns": pair} for task, pair in turns.items()]
        lines.append({"id": f"more-{k}", "task": "caption", "turns": (image, more)})
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """run(folder, *arguments, bias) -> (exit code, evaluation.json, the predictor)."""

    def command(folder, *arguments, bias=0.0):
        predictor = tiny_judges.FakePredictor(bias)
        monkeypatch.setattr(Predictor, "load", classmethod(lambda cls, *args, **options: predictor))
        output = tmp_path / folder
        code = main(["--checkpoint=x", f"--data={data}", f"--output={output}", "--batch=2", *JUDGES, *arguments])
        path = output / "evaluation.json"
        return code, json.loads(path.read_text()) if path.is_file() else None, predictor

    command.folder = tmp_path
    return command


def fast(*more):
    return ["--systems=chance,truth", "--metrics=wer,cider,clip,fid", *more]


def test_the_figures_are_those_of_the_answers(run):
    code, record, _ = run("out", *fast())
    assert code == 0
    results = record["systems"]["trained model"]
    said = [" ".join(tiny_judges.WORDS[: k + 1]) if k % 3 else "" for k in range(5)]
    unnormalized = 100 * jiwer.wer(TEXTS, said)
    assert results["asr"]["details"]["unnormalized"] == pytest.approx(unnormalized)
    assert results["asr"]["score"] <= unnormalized and results["asr"]["metric"] == "wer"
    heard = [" ".join(tiny_judges.WORDS[: len(e["answer"].split())]) for e in results["tts"]["examples"]]
    assert heard == [" ".join(tiny_judges.WORDS[:k]) if k % 3 else "" for k in range(5)]
    references = [[caption_tokens(t) for t in (text, f"there is a dog, no. {k}")] for k, text in enumerate(TEXTS)]
    cider = cider_d(references, [caption_tokens(s) for s in said])
    assert results["caption"]["score"] == pytest.approx(100 * cider.mean()) and results["caption"]["unit"] == "x100"
    assert [e["cider"] for e in results["caption"]["examples"]] == pytest.approx(cider.tolist())
    clip = results["t2i"]
    assert clip["examples"][0]["clip"] == 0 and 0 < clip["score"] < 1 and clip["more"]["fid"]["score"] > 0
    assert clip["more"]["fid"]["low"] is None and "cosine with the true picture" in clip["details"]
    for result in results.values():
        assert result["low"] <= result["score"] <= result["high"]


def test_the_judges_own_error_stands_beside_every_score(run, capsys):
    _, record, _ = run("out", *fast())
    truth = record["systems"]["judges on the files"]
    assert truth["asr"]["score"] == 0 and 0 < truth["tts"]["score"] < 100
    assert truth["caption"]["notes"] == ["against 1 references a picture, its own left out"]
    assert "two halves of the true ones" in truth["t2i"]["more"]["fid"]["notes"][0]
    printed = capsys.readouterr().out
    table = (run.folder / "out" / "evaluation.md").read_text()
    assert table.strip() in printed and "| judges on the files | " in table
    for head in ("ASR word error rate", "TTS word error", "CIDEr-D x 100", "CLIP score, cosine", "distance by colors"):
        assert head in table
    assert "2 of 5 answers are empty or not heard and count as 100 %" in table
    assert record["judges"]["tts"][0]["recognizer"] == "counter"


def test_how_long_answers_may_be_and_how_many_were_decoded_together_is_written_down(run):
    _, record, _ = run("out", "--task=asr", "--systems=", "--max_text=9", "--max_seconds=2.5")
    assert record["budgets"] == {"max_text": 9, "max_seconds": 2.5} and record["batch"] == 2


def test_a_killed_run_goes_on_and_ends_with_equal_results(run, monkeypatch):
    _, whole, calm = run("whole", *fast())
    append, count = RecordFile.append, [0]

    def killed_at_seven(self, index, record):
        count[0] += 1
        if count[0] in (7, 20, 30):
            raise KeyboardInterrupt
        append(self, index, record)

    monkeypatch.setattr(RecordFile, "append", killed_at_seven)
    codes, asked = [], []
    while not codes or codes[-1]:
        code, parts, predictor = run("parts", *fast())
        codes.append(code)
        asked += predictor.asked
    assert codes == [130, 130, 130, 0] and parts["systems"] == whole["systems"]
    assert len(calm.asked) == 12 and len(asked) <= len(calm.asked) + 3  # the group that was cut is made again
    for task in ("asr", "tts", "t2i", "caption"):
        mine, theirs = ((run.folder / f / task).glob("[0-9]*.[twp]*") for f in ("parts", "whole"))
        assert {p.name: p.read_bytes() for p in mine} == {p.name: p.read_bytes() for p in theirs}


def test_a_last_line_that_was_cut_is_made_again(run):
    _, whole, _ = run("out", "--task=asr", "--systems=")
    path = run.folder / "out" / "asr" / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    _, again, predictor = run("out", "--task=asr", "--systems=")
    assert again["systems"] == whole["systems"] and predictor.asked == [["asr-4"]]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("task", "name", "asked"),
    [("t2i", "002.png", ["t2i-2", "t2i-3"]), ("tts", "004.wav", ["tts-4"]), ("tts", "004.json", ["tts-4"])],
)
def test_an_answer_whose_file_is_gone_is_made_again(run, task, name, asked):
    _, whole, _ = run("out", f"--task={task}", "--systems=")
    (run.folder / "out" / task / name).unlink()
    measured = "clip" if task == "t2i" else "wer"
    (run.folder / "out" / task / f"{measured}.jsonl").unlink()
    code, again, predictor = run("out", f"--task={task}", "--systems=")
    assert code == 0 and again["systems"] == whole["systems"] and predictor.asked == [asked]
    assert (run.folder / "out" / task / name).is_file()


def test_an_answer_whose_file_is_damaged_is_named_with_what_to_do(run, capsys):
    run("out", "--task=t2i", "--systems=")
    (run.folder / "out" / "t2i" / "002.png").write_bytes(b"")
    (run.folder / "out" / "t2i" / "clip.jsonl").unlink()
    code, _, _ = run("out", "--task=t2i", "--systems=")
    assert code == 1 and "002.png cannot be read" in (error := capsys.readouterr().err) and "is removed" in error
    (run.folder / "out" / "t2i" / "002.png").unlink()
    assert run("out", "--task=t2i", "--systems=")[0] == 0


def test_a_metric_that_says_nothing_is_told(run, data, capsys):
    """References without a word once normalized have no error rate."""
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    for line in lines:
        line["turns"][1] = [{"text": "uh"}] if line["task"] == "asr" else line["turns"][1]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, record, _ = run("out", "--task=asr", "--systems=")
    assert code == 0 and record["systems"] == {"trained model": {}}
    assert "asr: wer says nothing of these documents; left out" in capsys.readouterr().out


def test_a_task_of_one_document_has_no_chance(run, data, capsys):
    lines = [line for line in data.read_text().splitlines() if '"asr-' not in line or '"asr-3"' in line]
    data.write_text("\n".join(lines) + "\n")
    code, record, _ = run("out", *fast())
    systems = record["systems"]
    assert code == 0 and record["documents"]["asr"] == 1
    assert list(systems["another document's answer"]) == ["caption", "t2i", "tts"]
    assert list(systems["trained model"]) == list(systems["judges on the files"]) == ["caption", "t2i", "asr", "tts"]
    alone = systems["trained model"]["asr"]
    assert alone["low"] == alone["score"] == alone["high"]
    assert "asr: one document, and chance is the answer of another; left out" in capsys.readouterr().out
    table = (run.folder / "out" / "evaluation.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| another document's answer |"))
    assert row.count("–") == 1
    code, record, _ = run("alone", "--task=asr", "--systems=chance")
    assert code == 0 and record["systems"]["another document's answer"] == {}


@pytest.mark.parametrize(
    ("task", "name", "record", "why"),
    [
        ("asr", "answers", {}, "it has no text"),
        ("t2i", "answers", {"text": "", "problems": []}, "it has no files"),
        ("t2i", "answers", {"text": "", "files": [3]}, "its files is no list of texts"),
        ("asr", "wer", {"answer": ""}, "it has no edits"),
        ("asr", "wer", {"answer": "", "edits": "2"}, "its edits is no number"),
        ("caption", "cider", {"caption_words": "a dog"}, "its caption_words is no list of texts"),
        ("t2i", "clip", {"clip": 0.5}, "it has no clip_image"),
    ],
)
def test_a_damaged_record_is_named_and_made_again_without_its_line(run, capsys, task, name, record, why):
    command = (f"--task={task}", "--systems=", *([] if task != "t2i" else ["--metrics=clip"]))
    _, whole, _ = run("out", *command)
    path = run.folder / "out" / task / f"{name}.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], json.dumps({"index": 1, **record}), *lines[3:]]) + "\n")
    assert run("out", *command)[0] == 1
    error = capsys.readouterr().err
    assert f"{path}: line 3 is damaged ({why}); remove the line" in error and error.count("\n") == 1
    path.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    code, again, _ = run("out", *command)
    assert code == 0 and again["systems"] == whole["systems"]


def test_a_finished_run_is_not_decoded_again(run):
    run("out", *fast())
    _, _, predictor = run("out", *fast())
    assert predictor.asked == []


@pytest.mark.parametrize(
    ("arguments", "bias", "changed"),
    [(["--seed=4"], 0.0, "seed"), ([], 1.0, "checkpoint"), (["--max_text=9"], 0.0, "decoding")],
)
def test_another_run_is_noticed(run, capsys, arguments, bias, changed):
    run("out", "--task=asr", "--systems=")
    capsys.readouterr()
    code, _, predictor = run("out", "--task=asr", "--systems=", "--on_change=refuse", *arguments, bias=bias)
    error = capsys.readouterr().err
    assert code == 1 and f"holds 5 records of another run ({changed} differ); give another --output" in error
    code, _, predictor = run("out", "--task=asr", "--systems=", *arguments, bias=bias)
    assert code == 0 and f"of another run ({changed} differ); beginning anew" in capsys.readouterr().out
    assert len(predictor.asked) == 3


def test_changed_data_are_noticed_by_content(run, capsys):
    run("out", "--task=asr", "--systems=")
    soundfile.write(run.folder / "2.wav", np.full(90, 0.5), 16000)
    code, _, _ = run("out", "--task=asr", "--systems=", "--on_change=refuse")
    assert code == 1 and "(documents differ)" in capsys.readouterr().err


def test_another_normalizer_judges_the_same_answers_anew(run):
    run("out", "--task=asr", "--systems=")
    _, record, predictor = run("out", "--task=asr", "--systems=", "--normalizer=none")
    result = record["systems"]["trained model"]["asr"]
    assert predictor.asked == [] and result["score"] == result["details"]["unnormalized"]


def test_a_document_that_cannot_be_asked(run, data, capsys):
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    next(line for line in lines if line["id"] == "asr-3")["meta"] = {"broken": True}
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, _ = run("out", "--task=asr", "--systems=")
    assert code == 1 and "document 'asr-3' is broken" in capsys.readouterr().err
    code, record, predictor = run("out", "--task=asr", "--systems=", "--on_error=empty")
    example = record["systems"]["trained model"]["asr"]["examples"][3]
    assert code == 0 and example["edits"] == example["words"] and "is broken" in example["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=asr", "--metrics=cider"], "--metrics=cider: not of task asr; a task's metrics: asr: wer"),
        (["--task=tts", "--recognizer=nobody"], "--recognizer=nobody: give pocketsphinx, whisper or MODULE:FACTORY"),
        (["--task=tts", "--recognizer=tiny_judges:Tall"], "Tall has no name, sample_rate, transcribe_all"),
        (["--task=tts", "--recognizer=tiny_judges:None_"], "tiny_judges has no function None_"),
        (["--task=t2i", "--clip=no_such:Thing"], "no module no_such"),
        (["--task=t2i", "--metrics=fid", "--fid=cleanfid:blurred"], "modes clean, legacy_pytorch, legacy_tensorflow"),
        (["--task=t2i", "--metrics=attributes"], "meta.scene is missing or damaged; attributes can be judged"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(run, capsys, arguments, message):
    code, record, _ = run("out", *arguments)
    error = capsys.readouterr().err
    assert code == 1 and record is None and message in error and error.count("\n") == 1


@pytest.mark.parametrize("scene", [None, 5, {}, {"objects": 3, "background": "red"}])
def test_a_damaged_scene_is_named(run, data, capsys, scene):
    lines = [json.loads(line) | {"meta": {"scene": scene}} for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, record, _ = run("out", "--task=t2i")
    error = capsys.readouterr().err
    assert code == 1 and record is None and "document 't2i-0' (5 in all): meta.scene is missing or damaged" in error


def test_unknown_names_are_usage_errors(run, capsys):
    for flag in ("--metrics=bleu", "--systems=oracle", "--limit=-1", "--max_seconds=nan", "--max_seconds=inf"):
        with pytest.raises(SystemExit):
            run("out", flag)
        assert flag.split("=")[0] in capsys.readouterr().err
