"""The manifest source: order, random access, lazy reading, and bad lines as records with an error."""

import json
import tracemalloc

import pytest

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources import SOURCES, open_source
from data_pipelines.sources.base import LineIndex, duplicates
from data_pipelines.sources.manifest import ManifestSource


def line(name, text="x"):
    return json.dumps({"id": name, "task": "text", "turns": [[{"text": text}]]})


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_records_come_in_order_from_any_place(tmp_path):
    count = 3 * LineIndex.STRIDE + 7
    lines = [line(f"d{i}") + ("\n   " if i % 5 == 0 else "") for i in range(count)]  # blank lines do not count
    source = open_source("manifest", write(tmp_path / "m.jsonl", lines))
    assert len(source) == count
    for start, stop in ((0, 3), (LineIndex.STRIDE - 2, LineIndex.STRIDE + 3), (count - 2, count), (5, 5)):
        records = list(source.read(start, stop))
        assert [r.index for r in records] == list(range(start, stop))
        assert [r.document.id for r in records] == [f"d{i}" for i in range(start, stop)]
    assert list(source.ids()) == [f"d{i}" for i in range(count)]
    assert next(source.read(6, 7)).where.endswith("m.jsonl: line 9")  # two blank lines stand before


def test_reading_holds_no_more_than_a_record(tmp_path):
    path = write(tmp_path / "m.jsonl", [line(f"d{i}", "y" * 10_000) for i in range(2000)])
    source = ManifestSource(path)
    tracemalloc.start()
    total = sum(len(record.document.turns[0].parts[0].value) for record in source.read(0, 2000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 20_000_000 and peak < 1_000_000


def test_media_paths_are_relative_to_the_manifest(tmp_path):
    turns = [[{"image": "images/a.png"}], [{"text": "x"}]]
    path = write(tmp_path / "m.jsonl", [json.dumps({"id": "a", "task": "caption", "turns": turns})])
    assert next(ManifestSource(path).read(0, 1)).document.media()[0].value == str(tmp_path / "images/a.png")


BAD = [
    ("{", "malformed JSON"),
    ("[1]", "must be a JSON object, not list"),
    ('{"id": "a", "task": "text"}', "key 'turns' is missing"),
    ('{"id": null, "task": "text", "turns": [[{"text": "x"}]]}', "'id' must be a text or a whole number, got None"),
    ('{"id": "", "task": "text", "turns": [[{"text": "x"}]]}', "'id' must be a text or a whole number, got ''"),
    ('{"id": ["a"], "task": "text", "turns": [[{"text": "x"}]]}', "'id' must be a text or a whole number, got ['a']"),
    ('{"id": "a", "task": "dance", "turns": [[{"text": "x"}]]}', "unknown task 'dance'"),
    ('{"id": "a", "task": "asr", "turns": [[{"speech": "a.wav"}], [{"text": ""}]]}', "turn 1: empty"),
    ('{"id": "a", "task": "caption", "turns": [[{"image": 3}], [{"text": "x"}]]}', "image must be a path"),
]


@pytest.mark.parametrize("bad,message", BAD)
def test_a_bad_line_is_a_record_with_its_place_and_reason(tmp_path, bad, message):
    source = ManifestSource(write(tmp_path / "m.jsonl", [line("a0"), bad, line("a2")]))
    records = list(source.read(0, 3))
    assert records[1].document is None and records[0].document and records[2].document
    assert f"{tmp_path / 'm.jsonl'}: line 2: " in records[1].error and message in records[1].error


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(line("a").encode() + b'\n{"id": "\xff"}\n')
    assert "line 2: not UTF-8 (byte 8)" in list(ManifestSource(tmp_path / "m.jsonl").read(0, 2))[1].error


def test_duplicates_are_found_and_unreadable_lines_are_not_duplicates(tmp_path):
    names = ["a", "b", "a", "c", "b", "a"]
    source = ManifestSource(write(tmp_path / "m.jsonl", [line(n) for n in names] + ["{", "{"]))
    assert duplicates(source) == {2: 0, 4: 1, 5: 0}


def test_records_without_an_id_are_not_duplicates_and_numbers_are_ids(tmp_path):
    source = ManifestSource(write(tmp_path / "m.jsonl", [line(None), line(None), line(7), line("7")]))
    assert duplicates(source) == {3: 2}
    assert [record.id for record in source.read(0, 4)] == ["", "", "7", "7"]


def test_digest_follows_the_content(tmp_path):
    first = ManifestSource(write(tmp_path / "m.jsonl", [line("a")])).digest
    assert ManifestSource(write(tmp_path / "m.jsonl", [line("a")])).digest == first
    assert ManifestSource(write(tmp_path / "m.jsonl", [line("b")])).digest != first


def test_unknown_source_and_missing_file(tmp_path):
    with pytest.raises(DocumentError, match="unknown source 'xml'.*manifest"):
        open_source("xml", tmp_path)
    with pytest.raises(DocumentError, match="no such file"):
        open_source("manifest", tmp_path / "none.jsonl")
    assert "manifest" in SOURCES
