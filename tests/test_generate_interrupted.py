"""Answers that are broken off, and lines that spoil only themselves."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from PIL import Image

from ar_omni_jax import generate
from ar_omni_jax.decoding.strategy import Strategy
from ar_omni_jax.history import read_history, write_history
from ar_omni_jax.inference import user_document
from ar_omni_jax.predictor import Predictor
from ar_omni_jax.tokenizers.speech.wav import WavWriter
from tests.tiny_predictor import BUDGETS, make_predictor, pixels, tts


@pytest.fixture(scope="module")
def predictor():
    return make_predictor(chunk=4, rows=2)


@pytest.fixture
def command(predictor, monkeypatch, tmp_path):
    """Runs the command with the tiny predictor in place of a checkpoint: arguments -> exit code."""
    monkeypatch.setattr(Predictor, "load", classmethod(lambda cls, *args, **options: predictor))

    def run(*arguments):
        return generate.main(["--checkpoint=x", f"--output={tmp_path / 'out'}", "--max_text=6", *map(str, arguments)])

    run.out = tmp_path / "out"
    return run


# -- the client goes -------------------------------------------------------------------------------------------
def test_a_client_that_closes_its_stream_leaves_the_predictor_usable(predictor):
    before = predictor.respond([tts()], seeds=[1], budgets={"speech": 40})[0]
    documents = [tts("a blue cross"), user_document("chat", text="hello"), tts()]
    stream = predictor.stream(documents, seeds=[5, 6, 7], budgets={"speech": 40})
    assert next(stream).error is None
    stream.close()
    for piece in predictor.stream(documents, seeds=[5, 6, 7], budgets={"speech": 40}):  # and one that just turns away
        if piece.samples is not None:
            break
    after = predictor.respond([tts()], seeds=[1], budgets={"speech": 40})[0]
    np.testing.assert_array_equal(after.tokens, before.tokens)


def test_a_stop_reaches_documents_that_wait(predictor):
    """Two rows: the third and fourth document have not begun when the third is stopped."""
    documents = [tts(), tts("a blue cross"), tts("a green square"), tts("a red ring")]
    last, pieces = {}, 0
    for piece in predictor.stream(documents, seeds=range(4), budgets={"speech": 30}):
        if not pieces:
            predictor.stop(2)
        pieces += 1
        assert piece.index != 2 or piece.error is not None
        last[piece.index] = piece
    assert "stopped before it began" in str(last[2].error)
    for i in (0, 1, 3):
        alone = predictor.respond([documents[i]], seeds=[i], budgets={"speech": 30})[0]
        np.testing.assert_array_equal(last[i].answer.tokens, alone.tokens)


def test_an_interrupt_keeps_what_came_and_leaves_the_predictor_usable(command, predictor, monkeypatch, capsys):
    """Ctrl-C while the third piece of sound is written."""
    write, written = WavWriter.write, []

    def interrupted(writer, samples):
        if len(written) == 2:
            raise KeyboardInterrupt
        write(writer, samples)
        written.append(samples)

    monkeypatch.setattr(WavWriter, "write", interrupted)
    assert command("--task=tts", "--text=a red circle", "--max_speech=40", "--stream") == 130
    sound, rate = soundfile.read(command.out / "tts.wav", dtype="float32")
    np.testing.assert_allclose(sound, np.concatenate(written).clip(-1, 1), atol=1e-4)
    out = capsys.readouterr()
    assert f"tts.wav holds {len(sound) / rate:.2f} s" in out.out and "Traceback" not in out.err
    assert {p.name for p in command.out.iterdir()} == {"tts.wav"}  # no record: there is no answer
    monkeypatch.undo()
    assert predictor.respond([tts()], seeds=[0], budgets=BUDGETS)[0].speech


def test_an_interrupt_among_many_keeps_the_answers_that_are_complete(command, predictor, tmp_path, monkeypatch):
    stream = predictor.stream

    def interrupted(*args, **options):
        for piece in stream(*args, **options):
            yield piece
            if piece.answer is not None:
                raise KeyboardInterrupt

    monkeypatch.setattr(predictor, "stream", interrupted)
    turns = [[{"text": "a circle"}]]
    lines = [json.dumps({"id": f"n{i}", "task": "text", "turns": turns}) for i in range(5)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    assert command(f"--requests={tmp_path / 'many.jsonl'}") == 130
    assert len([p for p in command.out.iterdir() if p.suffix == ".json"]) == 1


def test_an_interrupt_before_there_is_anything_is_no_traceback(monkeypatch, capsys, tmp_path):
    def interrupted(cls, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "load", classmethod(interrupted))
    assert generate.main(["--checkpoint=x", f"--output={tmp_path}", "--task=tts", "--text=x"]) == 130
    assert capsys.readouterr().err == "stopped\n"


# -- lines and values that spoil themselves only ---------------------------------------------------------------
def test_lines_of_any_kind_spoil_themselves_only(command, tmp_path, capsys):
    def line(name, text="a circle", **more):
        record = {"id": name, "task": "text", "turns": [[{"text": text}]], **more}
        return json.dumps(record, ensure_ascii=False).encode()

    lines = [
        line("first"),
        b"[" * 100_000,  # deeper than Python's JSON reads
        line("separators \u2028 in a line", "a\u2028b\x85c"),
        b'{"id": "\xff\xfe", "task": "text", "turns": [[{"text": "\xff"}]]}',
        line("long " * 100),
        line("no seed", seed=True),
        b'{"id": "five", "task": "caption", "turns": [[{"image": 100000000000}]]}',
        b'{"id": "six", "task": "asr", "turns": [[{"speech": {"a": 1}}]]}',
        line("last"),
    ]
    (tmp_path / "many.jsonl").write_bytes(b"\r\n".join(lines) + b"\n")
    assert command(f"--requests={tmp_path / 'many.jsonl'}") == 1
    answered = {p.stem for p in command.out.iterdir() if p.suffix == ".json"}
    long = ("long_" * 10)[: generate.LONGEST_NAME]
    assert answered == {"first", "separators_in_a_line", long, "last"}
    errors = capsys.readouterr().err
    for message in (":2: malformed JSON", "lone surrogate", "seed True is not", "image is a int", "speech is a dict"):
        assert message in errors
    assert errors.count("error:") == 5


def test_a_history_may_hold_any_character(tmp_path):
    """Separators that JSON leaves as they are do not end a line of the file."""
    text = "one\u2028two\x85three\u2029"
    document = user_document("chat", text=text)
    write_history(tmp_path / "talk.jsonl", [*document.turns, *document.turns])
    assert [turn.parts[0].value for turn in read_history(tmp_path / "talk.jsonl")] == [text, text]


# -- the same answer again -------------------------------------------------------------------------------------
def test_an_engine_of_given_size_serves_one_request_and_many(tmp_path, monkeypatch):
    """Then every product has the same shape, whatever is asked: in bfloat16, where other shapes round otherwise by
    whole percents, an answer alone is the answer among others."""
    free, fixed = (make_predictor(weights="bfloat16", **sizes) for sizes in ({}, {"rows": 4, "capacity": 200}))
    hot = {kind: Strategy(temperature=1.5) for kind in ("text", "speech", "image")}
    documents = [tts(), user_document("chat", text="hello"), tts("a blue cross"), user_document("text", text="a red")]
    options = {"budgets": BUDGETS, "strategies": hot}
    engines, sizes, answers = set(), [], []
    for chosen in ([0], [0, 1, 2, 3], [3, 1], [2]):
        made = fixed.respond([documents[i] for i in chosen], seeds=chosen, **options)
        answers += [(i, answer.tokens.tobytes()) for i, answer in zip(chosen, made, strict=True)]
        engines.add(id(fixed._engine))
        free.respond([documents[i] for i in chosen], seeds=chosen, **options)
        sizes.append(free.engine_size)
    assert len(engines) == 1 and fixed.engine_size == {"rows": 4, "capacity": 256}
    assert len(set(answers)) == 4  # each document has one answer
    assert sizes[0]["rows"] == 1 and sizes[1]["rows"] == 4  # by itself it takes what it needs


def test_the_record_has_the_size_that_makes_the_answer_again(monkeypatch, tmp_path):
    made = []

    def load(cls, checkpoint, step=None, **options):
        made.append(make_predictor(**options))
        return made[-1]

    monkeypatch.setattr(Predictor, "load", classmethod(load))
    common = ["--checkpoint=x", f"--output={tmp_path}", "--task=tts", "--text=a red circle", "--max_speech=12"]
    assert generate.main([*common, "--rows=3", "--capacity=300", "--name=one"]) == 0
    record = json.loads((tmp_path / "one.json").read_text())
    assert record["engine"] == {"rows": 3, "capacity": 256}  # the model holds no more
    assert generate.main([*common, "--name=two"]) == 0
    assert json.loads((tmp_path / "two.json").read_text())["engine"] == {"rows": 1, "capacity": 256}


def test_arrays_of_other_libraries_are_arrays(predictor):
    """PIL pictures and JAX arrays, as a caller may have them at hand."""
    sound = (0.1 * np.sin(np.arange(4800) * 0.1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, format="PNG")
    pictures = [pixels(), jnp.asarray(pixels()), Image.fromarray(pixels()), buffer.getvalue()]
    documents = [user_document("caption", image=value) for value in pictures]
    sounds = [sound, jnp.asarray(sound), (jnp.asarray(sound), 16000)]
    documents += [user_document("asr", speech=value) for value in sounds]
    answers = predictor.respond(documents, seeds=[0] * 7, budgets=BUDGETS)
    for group in (answers[:4], answers[4:]):
        assert len({answer.tokens.tobytes() for answer in group}) == 1
