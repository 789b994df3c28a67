"""The command and the Python API: files and records, streams, histories, and requests that cannot be answered."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from ar_omni_jax import generate
from ar_omni_jax.answer_stream import AnswerStream
from ar_omni_jax.decoding.strategy import GREEDY
from ar_omni_jax.documents import Document, DocumentError, Part, Turn
from ar_omni_jax.history import read_history
from ar_omni_jax.inference import detokenize, user_document
from ar_omni_jax.tokenizers.speech.wav import WavWriter, pcm16, wav_bytes
from ar_omni_jax.vocabulary import Modality
from tests.tiny_predictor import BUDGETS, make_command, make_predictor, pixels, tts, wave

HELLO = (Turn("user", (Part(Modality.TEXT, "hello"),)), Turn("assistant", (Part(Modality.TEXT, "hello"),)))


@pytest.fixture(scope="module")
def predictor():
    return make_predictor(chunk=4)


@pytest.fixture
def command(predictor, monkeypatch, tmp_path):
    return make_command(predictor, monkeypatch, tmp_path)


# -- the Python API --------------------------------------------------------------------------------------------
def test_images_and_sound_by_path_bytes_and_array_are_one_request(predictor, tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    buffer = io.BytesIO()
    soundfile.write(buffer, wave(), 16000, format="WAV", subtype="FLOAT")
    (tmp_path / "a.wav").write_bytes(buffer.getvalue())
    documents = [
        user_document("caption", image=value)
        for value in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), pixels())
    ] + [
        user_document("asr", speech=value)
        for value in (str(tmp_path / "a.wav"), buffer.getvalue(), wave(), (wave(), 16000))
    ]
    answers = predictor.respond(documents, seeds=[0] * 7, budgets=BUDGETS)
    for group in (answers[:3], answers[3:]):
        assert len({a.tokens.tobytes() for a in group}) == 1
    assert answers[0].counts["prompt"] > 64 and answers[0].counts["text"] <= 6


def test_pieces_of_a_stream_are_the_answer(predictor):
    documents = [tts(), user_document("t2i", text="a circle"), user_document("chat", text="hello")]
    documents.append(user_document("text"))
    pieces = list(predictor.stream(documents, seeds=range(4), budgets=BUDGETS))
    plain = predictor.respond(documents, seeds=range(4), budgets=BUDGETS)
    for i, expected in enumerate(plain):
        mine = [p for p in pieces if p.index == i]
        assert mine[-1].answer is not None and all(p.answer is None for p in mine[:-1])
        np.testing.assert_array_equal(mine[-1].answer.tokens, expected.tokens)
        assert mine[-1].answer.text == expected.text
        by_part = {}
        for p in mine[:-1]:
            by_part.setdefault(p.part, []).append(p)
        texts = ["".join(p.text for p in part) for part in by_part.values() if part[0].text]
        assert " ".join(texts) == expected.text
        sounds = [np.concatenate([p.samples for p in part]) for part in by_part.values() if part[0].samples is not None]
        assert len(sounds) == len(expected.speech)
        for sound, offline in zip(sounds, expected.speech, strict=True):
            np.testing.assert_allclose(sound, offline, atol=1e-5)
        images = [p.image for p in mine if p.image is not None]
        assert len(images) == len(expected.images)
        for image, offline in zip(images, expected.images, strict=True):
            np.testing.assert_array_equal(image, offline)
    speech = [p for p in pieces if p.index == 0 and p.samples is not None]
    assert len(speech) > 1  # it plays before it is complete
    assert plain[0].speech and plain[1].images and plain[3].text


def test_text_comes_whole_however_it_is_cut(predictor):
    """Characters of several byte pieces, and blanks that a later token shows to be inside."""
    tokenizers, text = predictor.tokenizers, "née Ünïcødé \u2603 end  "
    ids = tokenizers.vocabulary.to_ids(Modality.TEXT, tokenizers.text.encode(" " + text))
    tokens = np.append(ids, tokenizers.vocabulary.marker("eos"))
    for size in (1, 2, 5, len(tokens)):
        stream = AnswerStream(tokenizers)
        pieces = [p for at in range(0, len(tokens), size) for p in stream.push(tokens[at : at + size])]
        last, answer = stream.finish()
        assert "".join(p.text for p in pieces + last) == answer.text == text.strip()
        assert "\ufffd" not in "".join(p.text for p in pieces)


@pytest.mark.parametrize(
    "tokens",
    [["boa", 3, 4], [("text", 5), 6, "boi", 1, "eoi", "eos"], ["eoa", "eos", 9], []],
    ids=["open", "short image", "stray", "nothing"],
)
def test_malformed_answers_are_reported_and_not_lost(predictor, tokens):
    """A ModeSwitch may write anything; a stream of it ends as offline decoding does."""
    vocabulary, kind, ids = predictor.tokenizers.vocabulary, Modality.TEXT, []
    for token in tokens:
        if isinstance(token, str):
            kind = {"boa": Modality.SPEECH, "boi": Modality.IMAGE}.get(token, Modality.TEXT)
            ids.append(vocabulary.marker(token))
        else:
            ids.append(int(vocabulary.to_ids(kind, token[1] if isinstance(token, tuple) else token)))
    stream = AnswerStream(predictor.tokenizers)
    for token in ids:
        stream.push(np.array([token]))
    _, answer = stream.finish()
    offline = detokenize(np.array(ids, np.int32), predictor.tokenizers)
    assert answer.text == offline.text and answer.problems == offline.problems
    assert [len(s) for s in answer.speech] == [len(s) for s in offline.speech]
    assert len(answer.images) == len(offline.images) == 0


def bad_requests(tmp_path):
    (tmp_path / "bomb.png").write_bytes(b"not a picture")
    huge = io.BytesIO()
    Image.new("1", (20000, 5000)).save(huge, format="PNG")
    nan = wave()
    nan[5] = np.nan
    return [
        (Document("a", "dance", "text", (Turn("user", (Part(Modality.TEXT, "x"),)),)), "unknown task 'dance'"),
        (user_document("caption", image=huge.getvalue()), "more than 64000000 pixels"),
        (user_document("caption", image=np.broadcast_to(np.uint8(0), (9000, 9000, 3))), "more than 64000000 pixels"),
        (user_document("caption", image=np.zeros((4, 4, 3), np.float32)), "dtype must be uint8"),
        (user_document("caption", image=(pixels(), 16000)), "image is a tuple"),
        (user_document("caption", image=10**11), "image is a int"),
        (user_document("caption", image=tmp_path / "bomb.png"), "not a picture"),
        (user_document("caption", image=tmp_path / "gone.png"), "no such file"),
        (user_document("caption", image=3.5), "give a path, a file's bytes or an array"),
        (user_document("asr", speech=nan), "1 samples are NaN"),
        (user_document("asr", speech=np.zeros(0, np.float32)), "has no samples"),
        (user_document("asr", speech=b""), "empty"),
        (user_document("asr", speech=(wave(), 0)), "give a positive number"),
        (user_document("asr", speech=(wave(), 16000, 1)), "speech is a tuple"),
        (user_document("asr", speech=np.zeros(256 * 400 + 1, np.float32)), "more tokens than the 256"),
        (user_document("asr", speech=wave(6.3)), "needs at least"),
        (tts("a \udc80 circle"), "lone surrogate"),
        (tts("word " * 400), "needs at least"),
        (user_document("chat", text="word " * 400), "needs at least"),
        (user_document("chat", text="word " * 400, history=HELLO), "the last turn alone"),
        (user_document("asr", text="no speech"), "must be one speech part"),
    ]


def test_each_bad_request_has_its_own_error_and_the_others_their_answers(predictor, tmp_path):
    bad = bad_requests(tmp_path)
    documents = [tts(), *(document for document, _ in bad), tts()]
    answers = predictor.respond(documents, seeds=[1] * len(documents), budgets=BUDGETS, errors="return")
    for answer, (_, message) in zip(answers[1:-1], bad, strict=True):
        assert isinstance(answer, ValueError) and message in str(answer), answer
    alone = predictor.respond([tts()], seeds=[1], budgets=BUDGETS)[0]
    for answer in (answers[0], answers[-1]):
        np.testing.assert_array_equal(answer.tokens, alone.tokens)
    with pytest.raises(DocumentError, match="unknown task"):
        predictor.respond(documents[:2], seeds=[0, 0], budgets=BUDGETS)


def test_a_stop_in_the_middle_ends_one_request_alone(predictor):
    documents, last, heard = [tts(), tts("a blue cross")], {}, 0
    for piece in predictor.stream(documents, seeds=[1, 2], budgets={"speech": 40}):
        last[piece.index] = piece
        if piece.index == 0 and piece.samples is not None:
            heard += len(piece.samples)
            predictor.stop(0)
    assert "stopped after" in str(last[0].error) and 0 < heard < 40 * 400
    alone = predictor.respond(documents[1:], seeds=[2], budgets={"speech": 40})[0]
    np.testing.assert_array_equal(last[1].answer.tokens, alone.tokens)


def test_long_dialogues_lose_their_oldest_rounds_and_say_so(predictor):
    def talk(rounds):
        turns = []
        for i in range(rounds):
            turns += [Turn("user", (Part(Modality.TEXT, f"question {i} " + "red " * 8),))]
            turns += [Turn("assistant", (Part(Modality.TEXT, "a red circle"),))]
        return user_document("chat", text="and now?", history=turns)

    short, long = predictor.respond([talk(1), talk(30)], seeds=[0, 0], budgets=BUDGETS)
    answers_share = 1 + (6 + 2) + (64 + 2) + (12 + 2)  # one part of each kind, and the end
    assert short.notes == [] and 100 < long.counts["prompt"] <= 256 - answers_share
    assert len(long.notes) == 1 and long.notes[0].startswith("history: turns 1 to ")
    assert "of 61 were dropped" in long.notes[0]


def test_no_tokenizer_is_loaded_that_no_request_needs(tmp_path):
    made = make_predictor()
    answer = made.respond([user_document("text", text="a red")], seeds=[0], budgets=BUDGETS)[0]
    answer.save(tmp_path, "text")
    assert not {"speech", "image"} & set(vars(made.tokenizers))
    list(made.stream([tts()], budgets=BUDGETS))
    assert "speech" in vars(made.tokenizers) and "image" not in vars(made.tokenizers)


def test_a_missing_speech_model_stops_only_who_needs_it(tmp_path):
    made = make_predictor()

    def gone():
        raise DocumentError("speech.safetensors does not exist")

    made.tokenizers._make["speech"] = gone
    asked = [tts(), user_document("text", text="a red")]
    spoken, written = made.respond(asked, seeds=[0, 0], budgets=BUDGETS, errors="return")
    assert "speech.safetensors" in str(spoken) and written.text


def test_guidance_changes_images_and_nothing_else(predictor):
    from ar_omni_jax.decoding.guidance import Guidance

    documents = [user_document("t2i", text="a red circle"), user_document("asr", speech=wave())]
    options = dict(seeds=[0, 0], budgets=BUDGETS, strategies={"image": GREEDY})
    plain = predictor.respond(documents, **options)
    same = predictor.respond(documents, guidance=Guidance(1.0, 1.0), **options)
    guided = predictor.respond(documents, guidance=Guidance(5.0, 1.0), **options)
    np.testing.assert_array_equal(plain[0].tokens, same[0].tokens)
    assert (plain[0].tokens != guided[0].tokens).any()
    np.testing.assert_array_equal(plain[1].tokens, guided[1].tokens)


# -- the command -----------------------------------------------------------------------------------------------
def test_a_record_stands_beside_every_answer(command, capsys):
    assert command("--task=tts", "--text=a red circle", "--seed=3", "--name=hello") == 0
    record = json.loads((command.out / "hello.json").read_text())
    assert record["request"] == {"task": "tts", "turns": [{"role": "user", "parts": [{"text": "a red circle"}]}]}
    assert record["seed"] == 3 and record["step"] == 7 and record["checkpoint"] == "x"
    assert record["strategies"]["speech"]["greedy"] is True
    assert record["counts"]["answer"] == len(record["tokens"]) and record["counts"]["speech"] <= 12
    assert {"prepare", "first_token", "total"} <= set(record["seconds"])
    sound, rate = soundfile.read(command.out / "hello.wav", dtype="int16")
    assert rate == 16000 and len(sound) == 400 * record["counts"]["speech"]
    assert f"wrote {command.out / 'hello.wav'}" in capsys.readouterr().out


def test_streamed_wav_is_the_same_file_and_whole_at_every_moment(command, predictor, monkeypatch):
    assert command("--task=tts", "--text=a red circle") == 0
    expected, _ = soundfile.read(command.out / "tts.wav", dtype="int16")
    lengths, write = [], WavWriter.write

    def watched(writer, samples):
        write(writer, samples)
        lengths.append(len(soundfile.read(writer.path, dtype="int16")[0]))

    monkeypatch.setattr(WavWriter, "write", watched)
    assert command("--task=tts", "--text=a red circle", "--stream", "--name=live") == 0
    sound, _ = soundfile.read(command.out / "live.wav", dtype="int16")
    assert lengths == sorted(set(lengths)) and len(lengths) > 1 and lengths[-1] == len(expected)
    assert np.abs(sound.astype(int) - expected).max() <= 1
    record = json.loads((command.out / "live.json").read_text())
    assert record["files"] == ["live.wav"] and record["seconds"]["first_sound"] <= record["seconds"]["total"]


def test_raw_samples_to_standard_output(command, capfdbinary):
    assert command("--task=tts", "--text=a red circle", "--stream=-") == 0
    out, err = capfdbinary.readouterr()
    sound, _ = soundfile.read(command.out / "tts.wav", dtype="int16")
    np.testing.assert_array_equal(np.frombuffer(out, "<i2"), sound)
    assert b"wrote" in err


def test_many_requests_one_file_and_bad_ones_alone(command, tmp_path, capsys):
    part = {"role": "user", "parts": [{"text": "a circle"}]}
    lines = [
        json.dumps({"id": "one", "task": "tts", "turns": [part], "seed": 5}),
        json.dumps({"id": "two", "task": "dance", "turns": [part]}),
        "{",
        json.dumps({"id": "three/3", "task": "caption", "turns": [{"role": "user", "parts": [{"image": "gone.png"}]}]}),
        json.dumps({"id": "one", "task": "tts", "turns": [part]}),
        json.dumps({"id": "four", "task": "text", "turns": [part], "seed": "x"}),
        json.dumps({"id": "five", "task": "text", "turns": [part]}),
    ]
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    assert command(f"--requests={tmp_path / 'many.jsonl'}") == 1
    assert {p.name for p in command.out.iterdir()} == {"one.json", "one.wav", "five.json", "five.txt"}
    assert json.loads((command.out / "one.json").read_text())["seed"] == 5
    errors = capsys.readouterr().err
    for message in (
        "many.jsonl:2: unknown task 'dance'",
        "many.jsonl:3: malformed JSON",
        "three_3: document 'three/3'",
        "a second request would write to one.*",
        "seed 'x' is not an integer",
    ):
        assert message in errors
    assert errors.count("error:") == 5


def test_names_that_numbered_files_of_another_answer_would_take_are_refused(tmp_path):
    def asked(*ids):
        turns = [{"role": "user", "parts": [{"text": "hello"}]}]
        lines = [json.dumps({"id": name, "task": "tts", "turns": turns}) for name in ids]
        (tmp_path / "many.jsonl").write_text("\n".join(lines))
        return [ask.document for ask in generate.read_requests(tmp_path / "many.jsonl", 0)]

    for ids in (("x", "x-1"), ("x-1", "x")):
        first, second = asked(*ids)
        assert first.id == ids[0] and f"a second request would write to {ids[1]}" in str(second)
    assert [d.id for d in asked("x-1", "x-2", "y-x", "1-y")] == ["x-1", "x-2", "y-x", "1-y"]


def test_a_dialogue_is_remembered(command, tmp_path):
    talk = tmp_path / "talk.jsonl"
    for text in ("hello", "and now?"):
        assert command("--task=chat", f"--text={text}", f"--history={talk}", "--remember", f"--name={len(text)}") == 0
    turns = read_history(talk)
    assert [t.role for t in turns] == ["user", "assistant"] * 2
    assert turns[2].parts == (Part(Modality.TEXT, "and now?"),)
    first = json.loads((command.out / "5.json").read_text())
    media = [p.value for p in turns[1].parts if p.modality != Modality.TEXT]
    assert [str(command.out / f) for f in first["files"] if not f.endswith(".txt")] == media
    assert " ".join(p.value for p in turns[1].parts if p.modality == Modality.TEXT) == first["text"]
    second = json.loads((command.out / "8.json").read_text())
    assert len(second["request"]["turns"]) == 3 and second["counts"]["prompt"] > first["counts"]["prompt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text=x"], "give --task"),
        (["--task=tts"], "--task=tts takes --text; got nothing"),
        (["--task=tts", "--text=x", "--history=y"], "--history is for chat_speech"),
        (["--task=chat", "--text=x", "--history=gone.json"], "gone.json is not a file"),
        (["--task=chat", "--text=x", "--remember"], "--remember needs --history"),
        (["--requests=x", "--task=tts"], "--task does not go with --requests"),
        (["--task=tts", "--text=x", "--max_text=0"], "--max_text=0 must be at least 1"),
        (["--task=tts", "--text=x", "--stream=speaker"], "invalid choice: 'speaker'"),
    ],
)
def test_flags_that_do_not_belong_together(command, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command(*arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_what_a_person_can_mend_is_one_line(command, tmp_path, capsys):
    assert command("--task=tts", "--text=" + "word " * 400) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "shorten the prompt" in error and len(error.splitlines()) == 1


def test_help_says_how_a_stream_is_written():
    done = subprocess.run(
        [sys.executable, "-m", "ar_omni_jax.generate", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "signed 16-bit little-endian" in done.stdout and "--remember" in done.stdout


# -- WAV -------------------------------------------------------------------------------------------------------
def test_wav_bytes_are_what_other_programs_write():
    samples = np.array([0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -3.0], np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), 16000, format="WAV", subtype="PCM_16")
    read, rate = soundfile.read(io.BytesIO(wav_bytes(samples, 16000)), dtype="int16")
    theirs, _ = soundfile.read(io.BytesIO(buffer.getvalue()), dtype="int16")
    assert rate == 16000
    assert np.abs(read.astype(int) - theirs).max() <= 1
    assert pcm16(samples[5:]) == np.array([32767, -32767], "<i2").tobytes()
