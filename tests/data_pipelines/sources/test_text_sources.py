"""Text corpora in parquet and JSON lines: texts and dialogues to shards, places of records, bad rows."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import source_media
from source_media import reasons, records, texts

from ar_omni_jax.documents import DocumentError, Role
from ar_omni_jax.responses import response_text
from ar_omni_jax.vocabulary import Modality
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents
from data_pipelines.sources import SourceOptions, open_source
from data_pipelines.sources.base import duplicates

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "a red ball"},
    {"role": "assistant", "content": "a blue box"},
    {"role": "user", "content": "and now"},
    {"role": "assistant", "content": "nothing"},
]
DATA = ["a red ball", "a blue box", "and now", "nothing", "never answered"]
LAYOUTS = {
    "content": "a red ball and a blue box",
    "text": "a red ball and a blue box",
    "messages": MESSAGES,
    "data": DATA,
}


def write_jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


FORMATS = {"text_jsonl": (".jsonl", write_jsonl), "text_parquet": (".parquet", write_parquet)}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("format", sorted(FORMATS))
def test_shards_hold_the_text_and_only_answers_are_responses(tmp_path, format, layout):
    suffix, write = FORMATS[format]
    path = write(tmp_path / f"x{suffix}", [{layout: LAYOUTS[layout], "score": 0.5}] * 3)
    source_media.build(format, path, tmp_path / "out")
    documents = list(read_documents(tmp_path / "out", "train"))
    first = 1 if format == "text_jsonl" else 0
    assert [doc.id for doc in documents] == [f"x/{first + i}" for i in range(3)]
    tokenizers = source_media.toy()
    given = []
    for span in documents[0].spans:
        if (span.modality, span.role) == (Modality.TEXT, Role.RESPONSE):
            pieces = tokenizers.vocabulary.to_codes(Modality.TEXT, documents[0].tokens[span.start : span.end])
            given.append(response_text(pieces, tokenizers.text.decode))
    dialogue = layout in ("messages", "data")
    assert given == (["a blue box", "nothing"] if dialogue else ["a red ball and a blue box"])
    assert documents[0].task == ("chat" if dialogue else "text") and documents[0].group == "text"


def test_a_system_message_stands_before_the_first_question(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"messages": MESSAGES}])
    turns = records(open_source("text_jsonl", path))[0].document.turns
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2
    assert [part.value for part in turns[0].parts] == ["be brief", "a red ball"]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_records_come_in_order_from_any_place_of_many_files(tmp_path, format):
    suffix, write = FORMATS[format]
    (tmp_path / "b").mkdir()
    for name, first, count in (("a", 0, 7), ("b/c", 7, 1), ("d", 8, 5)):
        write(tmp_path / f"{name}{suffix}", [{"text": f"text {first + i}"} for i in range(count)])
    source = open_source(format, tmp_path)
    names = list(source.ids())
    assert len(names) == len(set(names)) == len(source) == 13
    for start, stop in ((0, 13), (2, 4), (6, 9), (12, 99)):
        some = list(source.read(start, stop))
        assert [record.id for record in some] == names[start:stop]
        assert [texts(record) for record in some] == [[f"text {i}"] for i in range(start, min(stop, 13))]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_long_documents_are_kept_whole(tmp_path, format):
    suffix, write = FORMATS[format]
    long = "word " * 200_000
    path = write(tmp_path / f"x{suffix}", [{"content": long}])
    assert texts(records(open_source(format, path))[0]) == [long]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_named_columns_and_equal_ids(tmp_path, format):
    suffix, write = FORMATS[format]
    rows = [{"text": "no", "body": f"yes {i}", "uid": uid} for i, uid in enumerate(("u", "v", "u", None))]
    path = write(tmp_path / f"x{suffix}", rows)
    source = open_source(format, path, SourceOptions(columns=(("text", "body"), ("id", "uid"))))
    assert list(source.ids()) == ["x/u", "x/v", "x/u", None] and duplicates(source) == {2: 0}
    assert texts(records(source)[1]) == ["yes 1"]
    assert len(reasons(source)) == 1 and "no id" in reasons(source)[0]
    options = {"options": SourceOptions(columns=(("text", "body"), ("id", "uid")))}
    options |= {"on_error": "skip", "error_budget": 0.5}
    counts = source_media.build(format, path, tmp_path / "out", **options).splits["train"]
    assert counts["dropped"] == {"duplicate id": 1, "malformed record": 1} and counts["documents"] == 2


BAD = [
    ({"content": " "}, "content: empty or missing text"),
    ({"content": None}, "content: empty or missing text None"),
    ({"data": ["a"]}, "data: a dialogue without an answer"),
    ({"data": ["a", ""]}, "data: turn 1: empty"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "turn 0 is 'assistant', must be 'user'"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "turn 1 is 'user'"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}, "turn 1 is 'tool'"),
]


@pytest.mark.parametrize("bad,message", BAD)
@pytest.mark.parametrize("format", sorted(FORMATS))
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, format, bad, message):
    suffix, write = FORMATS[format]
    key = next(iter(bad))
    path = write(tmp_path / f"x{suffix}", [{key: LAYOUTS[key]}, bad, {key: LAYOUTS[key]}])
    place = "line 2" if format == "text_jsonl" else "row 1"
    with pytest.raises(BuildError, match=f"(?s){path.name}: {place}: .*{message}.*on_error=skip"):
        source_media.build(format, path, tmp_path / "fail")
    counts = source_media.build(format, path, tmp_path / "skip", on_error="skip", error_budget=0.4).splits["train"]
    assert counts["dropped"] == {"malformed record": 1} and counts["documents"] == 2


def test_malformed_lines_are_named(tmp_path):
    rows = ["{", "[1]", json.dumps({"words": "x"}), json.dumps({"text": "good"})]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n')
    found = reasons(open_source("text_jsonl", path))
    wanted = (
        "line 1: malformed JSON",
        "line 2: .*object, not list",
        "line 3: none of .*only words",
        "line 5: not UTF-8",
    )
    assert len(found) == 4
    for reason, message in zip(found, wanted, strict=True):
        pytest.raises(DocumentError, _raise, reason).match(message)


def _raise(reason):
    raise DocumentError(reason)


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    rows = [{"id": str(i), "text": f"wört {i}"} for i in range(3)]
    data = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in [*rows, {"text": "last"}])
    (tmp_path / "x.jsonl").write_bytes(data.encode())
    source = open_source("text_jsonl", tmp_path / "x.jsonl")
    assert reasons(source) == [] and [texts(r) for r in records(source)] == [*([row["text"]] for row in rows), ["last"]]
    document = {"id": "a", "task": "text", "turns": [[{"text": "word"}]]}
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(document).encode() + b"\r\n")
    source = open_source("manifest", tmp_path / "m.jsonl")
    assert list(source.ids()) == ["a"] and texts(records(source)[0]) == ["word"]


def test_strings_may_be_kept_in_other_ways(tmp_path):
    words = ["a", "b", "a", None]
    columns = {
        "categories": pa.array(words).dictionary_encode(),
        "large": pa.array(words, pa.large_string()),
    }
    for name, column in columns.items():
        pq.write_table(pa.table({"text": column, "number": range(4)}), tmp_path / f"{name}.parquet")
        source = open_source("text_parquet", tmp_path / f"{name}.parquet")
        assert [texts(r)[0] for r in records(source) if r.document] == ["a", "b", "a"] and len(reasons(source)) == 1
    dialogue = pa.array([[{"content": "q", "role": "user"}, {"content": "a", "role": "assistant"}], None, []])
    for kind in (dialogue.type, pa.large_list(dialogue.type.value_type)):
        pq.write_table(pa.table({"messages": dialogue.cast(kind)}), tmp_path / "m.parquet")
        source = open_source("text_parquet", tmp_path / "m.parquet")
        assert [texts(r) for r in records(source) if r.document] == [["q", "a"]] and len(reasons(source)) == 2


def test_missing_columns_and_useless_options_are_named(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [{"words": "x"}])
    with pytest.raises(DocumentError, match="x.parquet: columns: none of messages, .*only words.*--columns=text:NAME"):
        open_source("text_parquet", path)
    for format in FORMATS:
        with pytest.raises(DocumentError, match=f"source {format} does not take --tasks"):
            open_source(format, path, SourceOptions(tasks=(("asr", 1),)))
        with pytest.raises(DocumentError, match="no such file"):
            open_source(format, tmp_path / "none")


def test_a_file_that_goes_away_ends_in_words(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "a"}])
    source = open_source("text_jsonl", path)
    path.unlink()
    with pytest.raises(DocumentError, match="x.jsonl: cannot be read any more"):
        records(source)


def test_digest_follows_the_content(tmp_path):
    for format, (suffix, write) in FORMATS.items():
        path = write(tmp_path / f"x{suffix}", [{"text": "a"}])
        first = open_source(format, path).digest
        assert open_source(format, write(path, [{"text": "a"}])).digest == first
        assert open_source(format, write(path, [{"text": "b"}])).digest != first


def test_reading_lines_holds_one_of_them(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", ({"text": "y" * 10_000} for _ in range(1000)))
    source = open_source("text_jsonl", path)
    tracemalloc.start()
    assert sum(len(texts(record)[0]) for record in source.read(0, 1000)) == 10_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
