"""Values, files and terminals of a kind that nobody planned for: they change nothing but what is theirs."""

from __future__ import annotations

import io
import json
import os
import sys

import numpy as np
import pytest
import soundfile

from ar_omni_jax import generate, templates
from ar_omni_jax.documents import Part
from ar_omni_jax.inference import user_document
from ar_omni_jax.predictor import Predictor
from ar_omni_jax.vocabulary import Modality
from tests.tiny_predictor import BUDGETS, make_command, make_predictor, pixels, tts, wave


@pytest.fixture(scope="module")
def predictor():
    return make_predictor(chunk=4)


@pytest.fixture
def command(predictor, monkeypatch, tmp_path):
    return make_command(predictor, monkeypatch, tmp_path)


# -- values ----------------------------------------------------------------------------------------------------
class Tensor:
    """An array of another library that cannot be had: on another device, or with a gradient."""

    def __init__(self, error: Exception):
        self.error = error

    def __array__(self, *args, **options):
        raise self.error


def test_an_array_that_cannot_be_had_fails_alone(predictor):
    values = [Tensor(RuntimeError("it requires grad")), Tensor(TypeError("on cuda:0"))]
    documents = [user_document("caption", image=values[0]), user_document("text", text="a red")]
    documents += [user_document("asr", speech=values[1]), user_document("asr", speech=(values[0], 16000))]
    answers = predictor.respond(documents, seeds=[0] * 4, budgets=BUDGETS, errors="return")
    assert answers[1].text
    reasons = ("it requires grad", "on cuda:0", "it requires grad")
    for answer, why in zip((answers[0], *answers[2:]), reasons, strict=True):
        assert isinstance(answer, ValueError) and f"Tensor cannot be read as an array ({why})" in str(answer)


def test_no_text_can_write_a_marker(predictor):
    """A user who types a marker's name says these letters: every id of it is of text."""
    tokenizers = predictor.tokenizers
    names = [*tokenizers.vocabulary.markers, "s", "/s", "0x0A", "image", "racm3:break", "eoss", "-Ins-"]
    text = "".join(f"<{name}> " for name in names) + "\x00\x01\ufeff\u2581 \U0001f600"

    def kinds(text):
        ids = templates.prompt(tts(text), "paper", tokenizers.vocabulary, tokenizers.text.encode)
        return tokenizers.vocabulary.modality_of(ids)

    assert (kinds(text) == Modality.MARKER).sum() == (kinds("red") == Modality.MARKER).sum()
    assert (kinds(text) == Modality.TEXT).sum() > len(text) / 8
    assert predictor.tokenizers.text.decode(tokenizers.text.encode(text)) == text


def test_codes_of_a_prompt_do_not_depend_on_other_prompts(predictor, monkeypatch):
    """Encoders round by the number of pictures; one that does so grossly shows whether anybody's codes see it."""
    image, speech = predictor.tokenizers.image, predictor.tokenizers.speech
    encode, encode_batch = image.encode, speech.encode_batch
    monkeypatch.setattr(image, "encode", lambda x: (encode(x) + len(x)) % image.codebook_size)
    monkeypatch.setattr(
        speech, "encode_batch", lambda x: [(codes + len(x)) % speech.codebook_size for codes in encode_batch(x)]
    )
    documents = [user_document("caption", image=pixels()), user_document("asr", speech=wave())] * 2
    options = {"root": predictor.root, "options": dict(budgets=BUDGETS, max_new_tokens=None)}
    together = predictor._prepare(documents, [0] * 4, **options)
    for document, (request, _, _) in zip(documents, together, strict=True):
        ((alone, _, _),) = predictor._prepare([document], [0], **options)
        np.testing.assert_array_equal(request.prompt, alone.prompt)


# -- files -----------------------------------------------------------------------------------------------------
def test_a_file_of_another_editor_is_read(command, tmp_path):
    """A byte order mark, lines that end as in DOS, and blank ones."""
    lines = [json.dumps({"id": f"n{i}", "task": "text", "turns": [[{"text": "a circle"}]]}) for i in range(2)]
    (tmp_path / "many.jsonl").write_bytes(("\ufeff\r\n" + "\r\n \r\n".join(lines) + "\r\n\r\n").encode())
    assert command(f"--requests={tmp_path / 'many.jsonl'}") == 0
    assert {p.stem for p in command.out.iterdir()} == {"n0", "n1"}


@pytest.mark.parametrize("place", ["", "/below"])
def test_an_output_that_cannot_be_is_told_before_the_work(monkeypatch, tmp_path, capsys, place):
    monkeypatch.setattr(Predictor, "load", classmethod(lambda *_, **__: pytest.fail("a model was loaded")))
    (tmp_path / "taken").write_text("a file")
    assert generate.main(["--checkpoint=x", f"--output={tmp_path}/taken{place}", "--task=tts", "--text=x"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --output=") and "cannot be made a directory" in error


# -- terminals -------------------------------------------------------------------------------------------------
def closed_pipe():
    """A stream whose reader has gone, as after `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_answers_are_written_where_nobody_reads_what_is_told(command, tmp_path, monkeypatch):
    lines = [json.dumps({"id": f"n{i}", "task": "tts", "turns": [[{"text": "a circle"}]]}) for i in range(2)]
    lines.append(json.dumps({"id": "bad", "task": "dance", "turns": []}))
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    monkeypatch.setattr(sys, "stderr", closed_pipe())
    assert command(f"--requests={tmp_path / 'many.jsonl'}", "--stream") == 1
    sys.stdout.close()  # nothing is left in it that could not be written
    assert {p.name for p in command.out.iterdir()} == {"n0.wav", "n0.json", "n1.wav", "n1.json"}


def test_a_player_that_stops_leaves_the_whole_answer(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    assert command("--task=tts", "--text=a red circle", "--stream=-") == 0
    assert "the player has stopped" in capsys.readouterr().err
    record = json.loads((command.out / "tts.json").read_text())
    assert len(soundfile.read(command.out / "tts.wav")[0]) == 400 * record["counts"]["speech"]


def test_a_terminal_without_a_character_gets_its_number(command, predictor, monkeypatch):
    stream = predictor.stream

    def with_umlauts(*args, **options):
        for piece in stream(*args, **options):
            if piece.answer is not None:
                piece.answer.text, piece.answer.parts = "fünf\u2192", [Part(Modality.TEXT, "fünf\u2192")]
            yield piece

    monkeypatch.setattr(predictor, "stream", with_umlauts)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert command("--task=text", "--text=a red") == 0
    assert b"f\\xfcnf\\u2192" in terminal.buffer.getvalue()
    assert (command.out / "text.txt").read_text("utf-8") == "fünf\u2192\n"
