"""Damaged and foreign shards: every command that reads them names the file and the record, and says what to do."""

import dataclasses
import re

import pytest
from corpus import VOCABULARY, make_documents, rows_of, write_documents

from ar_omni_jax.vocabulary import VocabularyError
from data_pipelines import inspect_shards, schema, shards
from data_pipelines.dataset_info import read_info, write_info
from data_pipelines.loader import make_loader
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.schema import SchemaError

PLACE = 5  # record that is damaged


def out_of_range(record):
    doc = schema.decode_document(record)
    spans = (*doc.spans[:-1], dataclasses.replace(doc.spans[-1], end=len(doc.tokens) + 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "check_document", lambda *_: None)
        return schema.encode_document(dataclasses.replace(doc, spans=spans))


def foreign_id(record):
    doc = schema.decode_document(record)
    doc.tokens[2] = VOCABULARY.size
    return schema.encode_document(doc)


def foreign_row(record):
    row = schema.decode_packed(record)
    row.tokens[2] = VOCABULARY.size
    return schema.encode_packed(row, 2)


def older(record):
    return record[:6] + (schema.SCHEMA_VERSION + 1).to_bytes(2, "little") + record[8:]


def flipped(record):
    return record[:-3] + bytes([record[-3] ^ 1]) + record[-2:]


EITHER = {
    "cut record": (lambda record: record[:10], SchemaError, "cut short|wanted|not a record", "again"),
    "flipped bit": (flipped, SchemaError, "checksum mismatch", "build the shard again"),
    "other schema": (older, SchemaError, "schema version 2, but this code reads version 1", "build the data again"),
    "no record": (lambda record: b"x" * len(record), SchemaError, "not a record of this project", "build"),
}
DOCUMENTS = EITHER | {
    "span out of range": (out_of_range, SchemaError, r"span \d+ = .* is out of range", "build it again"),
    "foreign id": (
        foreign_id,
        VocabularyError,
        f"id {VOCABULARY.size} at position 2",
        "was the data made with another vocabulary?",
    ),
}
PACKED = EITHER | {
    "foreign id": (foreign_row, VocabularyError, f"id {VOCABULARY.size}", "was the data made with another vocabulary?"),
}


def damage(path, change):
    """Writes the shard anew with one record changed."""
    records = [data for _, data in shards.read_records(path)]
    records[PLACE] = change(records[PLACE])
    with shards.ShardWriter(path) as writer:
        for record in records:
            writer.write(record)


def refused(fault, path, read):
    """`read` fails, naming file and record, the fault and the remedy."""
    _, error, said, advice = fault
    with pytest.raises(error) as caught:
        read()
    message = str(caught.value)
    assert f"{path}: record {PLACE}" in message and re.search(said, message) and advice in message, message


@pytest.fixture
def documents(tmp_path):
    write_documents(tmp_path / "in", {"train": make_documents(60, low=20, high=90)})
    return tmp_path / "in"


BUCKETS = PackOptions(64, overlong="bucket", bucket_lengths=(128,))


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_a_bad_document_is_named_by_what_packs_and_inspects(documents, tmp_path, name):
    path = shards.shard_paths(documents, "train")[1]
    damage(path, DOCUMENTS[name][0])
    for options in (PackOptions(128, unit_tokens=500), BUCKETS):
        output = tmp_path / options.overlong
        refused(DOCUMENTS[name], path, lambda options=options, output=output: pack(documents, output, options))
        assert not (output / "dataset.json").exists()
    refused(DOCUMENTS[name], path, lambda: inspect_shards.inspect(documents))


@pytest.mark.parametrize("name", list(PACKED))
def test_a_bad_row_is_named_by_what_trains_and_inspects(documents, tmp_path, name):
    pack(documents, tmp_path / "out", PackOptions(128))
    (path,) = shards.shard_paths(tmp_path / "out" / "train", "image")
    damage(path, PACKED[name][0])

    def train():
        data = {"path": tmp_path / "out", "stop": "all_exhausted"}
        with make_loader(data, split="train", global_batch=2, seed=0) as loader:
            list(loader)

    refused(PACKED[name], path, train)
    refused(PACKED[name], path, lambda: inspect_shards.inspect(tmp_path / "out"))


@pytest.mark.parametrize("left", [0, 1000, 0.5])
def test_a_cut_shard_is_named(documents, tmp_path, left):
    pack(documents, tmp_path / "out", PackOptions(128))
    (row_shard,) = shards.shard_paths(tmp_path / "out" / "train", "text")
    document_shard = shards.shard_paths(documents, "train")[2]
    for path in (row_shard, document_shard):
        data = path.read_bytes()
        path.write_bytes(data[: left if isinstance(left, int) else int(left * len(data))])
    data = {"path": tmp_path / "out"}
    for read, path in (
        (lambda: pack(documents, tmp_path / "new", PackOptions(128)), document_shard),
        (lambda: pack(documents, tmp_path / "long", BUCKETS), document_shard),
        (lambda: inspect_shards.inspect(documents), document_shard),
        (lambda: inspect_shards.inspect(tmp_path / "out"), row_shard),
        (lambda: make_loader(data, split="train", global_batch=2, seed=0), row_shard),
    ):
        with pytest.raises(SchemaError, match=f"{path}: .*again"):
            read()


def test_data_of_another_vocabulary_or_schema_are_refused_before_a_record_is_read(documents, tmp_path):
    pack(documents, tmp_path / "out", PackOptions(128))
    for folder, read in (
        (documents, lambda: pack(documents, tmp_path / "new", PackOptions(128))),
        (tmp_path / "out", lambda: make_loader({"path": tmp_path / "out"}, split="train", global_batch=2, seed=0)),
    ):
        info = read_info(folder)
        for path in sorted(folder.rglob("*.arrayrecord")):
            path.write_bytes(b"")
        text = (folder / "dataset.json").read_text()
        (folder / "dataset.json").write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
        with pytest.raises(SchemaError, match=f"{folder}/dataset.json: schema version 2.*build it again"):
            read()
        write_info(folder, info)
    with pytest.raises(VocabularyError, match="dataset.json.*feedfeedfeedfeed.*build the data again"):
        make_loader(
            {"path": tmp_path / "out"}, split="train", global_batch=2, seed=0, vocabulary_fingerprint="feedfeedfeedfeed"
        )
    assert not list(rows_of(tmp_path / "new"))
