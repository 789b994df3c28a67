"""VoiceAssistant-400K: spoken questions of all codecs out of parquet, loss on answers, bad rows."""

import dialogue_corpus as corpus
import pytest

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.vocabulary import Modality
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents
from data_pipelines.sources import open_source

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

CODECS = (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", None), ("OGG", "OPUS"))


@pytest.fixture(scope="module")
def tokenizers():
    return load_tokenizers()


def row(number=0, **changes):
    """One exchange in the columns of the published set."""
    format, subtype = CODECS[number % len(CODECS)]
    return {
        "split_name": "identity",
        "index": str(number // 2),  # repeats
        "round": "1",
        "question": f"question {number}",
        "question_audio": {"bytes": corpus.sound(None, number, format, subtype), "path": "made.wav"},
        "answer": f"Answer number {number}.",
        "answer_snac": "# 1 2 3 # 4 5 6",
    } | changes


def write(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **({"row_group_size": 3} | options))
    return path


def test_exchanges_become_shards_with_the_question_s_own_tokens(tmp_path, tokenizers):
    rows = [row(i) for i in range(5)]
    write(tmp_path / "train-0.parquet", rows)
    info = corpus.build("voice_assistant", tmp_path, tmp_path / "out", tokenizers)
    documents = list(read_documents(tmp_path / "out", "train", tokenizers.vocabulary))
    assert [d.id for d in documents] == [f"train-0/{i}" for i in range(5)]
    assert info.splits["train"]["by_task"].keys() == {"chat_speech"}
    for document, record in zip(documents, rows, strict=True):
        codes = corpus.direct_codes(tokenizers, Modality.SPEECH, record["question_audio"]["bytes"])
        assert corpus.media_codes(document, tokenizers.vocabulary) == [(Modality.SPEECH, codes)]
    corpus.check_only_answers_are_trained_on(tmp_path / "out", tmp_path / "packed", tokenizers)


def test_what_is_said_goes_to_the_meta(tmp_path):
    (record,) = open_source("voice_assistant", write(tmp_path / "a.parquet", [row(3)])).read(0, 1)
    user, assistant = record.document.turns
    assert [p.modality for p in user.parts] == [Modality.SPEECH]
    assert [(p.modality, p.value) for p in assistant.parts] == [(Modality.TEXT, "Answer number 3.")]
    expected = {"question": "question 3", "split_name": "identity", "index": "1", "round": "1"}
    assert record.document.meta == expected and record.document.task == "chat_speech"


def test_spoken_answers_and_paths(tmp_path):
    corpus.sound(tmp_path / "q.flac", 5)
    answer = {"bytes": corpus.sound(None, 6, "MP3"), "path": None}
    given = [row(0, question_audio={"bytes": None, "path": "q.flac"}, answer_audio=answer), row(1, answer_audio=None)]
    spoken, written = open_source("voice_assistant", write(tmp_path / "a.parquet", given)).read(0, 2)
    assert spoken.document.turns[0].parts[0].value == str(tmp_path / "q.flac")
    assert [p.modality for p in spoken.document.turns[1].parts] == [Modality.TEXT, Modality.SPEECH]
    assert (spoken.document.task, written.document.task) == ("chat", "chat_speech")


BAD = {
    "no answer": ({"answer": None}, "empty or missing answer None"),
    "blank answer": ({"answer": "  "}, "empty or missing answer '  '"),
    "no audio": ({"question_audio": None}, "question_audio has neither bytes nor a path"),
    "empty audio": ({"question_audio": {"bytes": b"", "path": None}}, "question_audio has neither bytes nor a path"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named(name, tmp_path):
    changes, message = BAD[name]
    path = write(tmp_path / "a.parquet", [row(0), row(1, **changes)])
    good, bad = open_source("voice_assistant", path).read(0, 2)
    assert not good.error and bad.document is None
    assert message in bad.error and "a.parquet: row 1" in bad.error


def test_a_path_that_is_a_number_is_none(tmp_path):
    audio = [{"bytes": corpus.sound(None, 0, "FLAC"), "path": 7}, {"bytes": None, "path": 8}]
    path = write(tmp_path / "a.parquet", [row(i, question_audio=audio[i]) for i in range(2)])
    good, bad = open_source("voice_assistant", path).read(0, 2)
    assert good.document.media()[0].value == audio[0]["bytes"]
    assert "a.parquet: row 1: question_audio has neither bytes nor a path" in bad.error


def test_a_missing_column_is_named(tmp_path):
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(DocumentError, match="no column 'question_audio'; it has question, answer"):
        open_source("voice_assistant", tmp_path / "a.parquet")


def test_sound_that_cannot_be_decoded(tmp_path, tokenizers):
    cut = {"bytes": corpus.sound(None, 0, "FLAC")[:30], "path": "made.wav"}
    path = write(tmp_path / "a.parquet", [row(0), row(1, question_audio=cut), row(2)])
    info = corpus.build("voice_assistant", path, tmp_path / "out", tokenizers, on_error="skip", error_budget=0.3)
    assert info.splits["train"]["dropped"] == {"unusable speech": 1} and info.splits["train"]["documents"] == 2
    assert "a.parquet: row 1" in info.splits["train"]["dropped_list"][0]["detail"]
    with pytest.raises(BuildError, match="a.parquet: row 1.*cannot be decoded"):
        corpus.build("voice_assistant", path, tmp_path / "fail", tokenizers)
