"""Records, shards and dataset.json: round trips, equal bytes for equal input, and errors that name the place."""

import concurrent.futures
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.documents import GROUPS, TASKS, Role, Span, TokenDocument
from ar_omni_jax.vocabulary import Modality, VocabularyError, compact_vocabulary
from data_pipelines import schema, shards
from data_pipelines.dataset_info import Counts, DatasetInfo, merge_infos, read_info, write_info
from data_pipelines.schema import SchemaError

VOCABULARY = compact_vocabulary(50, 30, 20, (2, 2))


def document(n=10, doc_id="a", task="asr", group="speech", high=100):
    tokens = (np.arange(n) * 7 % high).astype(np.int32)
    cut = n // 2
    spans = [Span(Modality.SPEECH, Role.PROMPT, 0, cut)] if cut else []
    return TokenDocument(doc_id, task, group, tokens, (*spans, Span(Modality.TEXT, Role.RESPONSE, cut, n)), "src")


def row(lengths, length=32, seed=0):
    rng = np.random.default_rng(seed)
    filled = sum(lengths)
    segments = np.zeros(length, np.int32)
    segments[:filled] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    tokens = np.where(segments > 0, rng.integers(0, 100, length), 1).astype(np.int32)
    classes = np.where(segments > 0, rng.integers(0, 255, length), 0).astype(np.uint8)
    return schema.PackedExample(tokens, segments, schema.positions_of(segments), classes)


def same(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        np.testing.assert_array_equal(x, y)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, field.name


def write(path, records):
    with shards.ShardWriter(path) as writer:
        for record in records:
            writer.write(record)


@settings(max_examples=40, deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.sampled_from(Modality), st.sampled_from(Role), st.integers(1, 9)), min_size=1, max_size=6
    ),
    name=st.text(max_size=20),
    task=st.sampled_from(TASKS),
    group=st.sampled_from(GROUPS),
    high=st.sampled_from([127, 70_000, 2**31 - 1]),
)
def test_document_round_trip(runs, name, task, group, high):
    spans, end = [], 0
    for modality, role, n in runs:
        spans.append(Span(modality, role, end, end + n))
        end += n
    tokens = np.linspace(0, high, end).astype(np.int32)
    doc = TokenDocument(name, task, group, tokens, tuple(spans), "s/" + name)
    data = schema.encode_document(doc)
    same(schema.decode_document(data), doc)
    assert schema.encode_document(schema.decode_document(data)) == data


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 8), max_size=4), seed=st.integers(0, 99))
def test_packed_round_trip_alone_and_in_a_batch(lengths, seed):
    examples = [row(lengths, seed=seed), row([5, 27], seed=seed + 1)]
    for width in (2, 4):
        records = [schema.encode_packed(e, width) for e in examples]
        batch = schema.decode_packed_batch(records, 32, VOCABULARY)
        for i, example in enumerate(examples):
            same(schema.decode_packed(records[i]), example)
            for field in dataclasses.fields(example):
                np.testing.assert_array_equal(getattr(batch, field.name)[i], getattr(example, field.name))


def test_bad_records_are_named():
    good = schema.encode_document(document())
    flipped = good[:-3] + bytes([good[-3] ^ 1]) + good[-2:]
    older = good[:6] + (schema.SCHEMA_VERSION + 1).to_bytes(2, "little") + good[8:]
    cases = [
        (good[:10], "cut short"),
        (good[:-2], "checksum"),
        (flipped, "checksum"),
        (older, "schema version 2, but this code reads version 1"),
        (b"x" * 40, "not a record"),
        (schema.encode_packed(row([3]), 2), "holds packed, wanted documents"),
    ]
    for data, message in cases:
        with pytest.raises(SchemaError, match=message) as e:
            schema.decode_document(data, where="f.arrayrecord: record 7")
        assert "f.arrayrecord: record 7" in str(e.value)


def test_foreign_ids_and_bad_spans_are_refused():
    doc = document(high=100)
    bad = dataclasses.replace(doc, tokens=np.array([1, VOCABULARY.size, 2], np.int32), spans=())
    bad = dataclasses.replace(bad, spans=(Span(Modality.TEXT, Role.PROMPT, 0, 3),))
    with pytest.raises(VocabularyError, match=r"f: document 'a': id 128 at position 1"):
        schema.decode_document(schema.encode_document(bad), VOCABULARY, "f")
    one = Span(Modality.TEXT, Role.PROMPT, 0, 5)
    for spans in [(one,), (one, Span(Modality.TEXT, Role.PROMPT, 4, 10)), (dataclasses.replace(one, end=11),), ()]:
        with pytest.raises(SchemaError, match="document 'a'.*span"):
            schema.encode_document(dataclasses.replace(doc, spans=spans))
    foreign = schema.encode_packed(row([4]), 2)
    with pytest.raises(VocabularyError, match="here: id"):
        schema.decode_packed_batch([foreign], 32, compact_vocabulary(1, 1, 1, (1, 1), multiple=1), lambda _: "here")


def test_packed_rows_are_checked():
    good = row([3, 4])
    shifted = dataclasses.replace(good, positions=good.positions + 1)
    with pytest.raises(SchemaError, match="positions"):
        schema.encode_packed(shifted, 2)
    segments = good.segment_ids[::-1].copy()
    with pytest.raises(SchemaError, match="segment ids must count"):
        schema.encode_packed(dataclasses.replace(good, segment_ids=segments), 2)
    with pytest.raises(SchemaError, match="record 1: row of 32 tokens, wanted 16"):
        half = row([3], length=16)
        schema.decode_packed_batch([schema.encode_packed(half, 2), schema.encode_packed(good, 2)], 16)


def test_shards_are_atomic_deterministic_and_ordered(tmp_path):
    records = [schema.encode_document(document(i + 1, f"d{i}")) for i in range(300)]
    names = [shards.shard_name("train", i, 2) for i in range(2)]
    write(tmp_path / names[0], records[:150])
    with pytest.raises(SchemaError, match=r"train lacks shards \[1\]"):
        shards.shard_paths(tmp_path, "train")
    with pytest.raises(RuntimeError, match="stop"):
        with shards.ShardWriter(tmp_path / names[1]) as writer:
            writer.write(records[0])
            raise RuntimeError("stop")
    assert [p.name for p in tmp_path.iterdir()] == [names[0]]
    write(tmp_path / names[1], records[150:])
    write(tmp_path / "again.arrayrecord", records[150:])
    assert (tmp_path / "again.arrayrecord").read_bytes() == (tmp_path / names[1]).read_bytes()
    assert [d.id for d in shards.read_documents(tmp_path, "train")] == [f"d{i}" for i in range(300)]
    with shards.ShardReader(tmp_path / names[1]) as reader:
        assert reader.read([3, 0, 149]) == [records[153], records[150], records[299]]
        with pytest.raises(SchemaError, match="no record 150"):
            reader.read([150])
    with pytest.raises(SchemaError, match="no test shards.*--split=test"):
        list(shards.read_documents(tmp_path, "test"))


def test_two_writers_of_one_shard_never_publish_a_half(tmp_path):
    """As in two containers, whose commands have equal process ids."""
    path, records = tmp_path / shards.shard_name("train", 0, 1), [bytes([i]) * 5000 for i in range(50)]
    write(tmp_path / "whole.arrayrecord", records)
    first = shards.ShardWriter(path)
    for record in records[:25]:
        first.write(record)
    second = shards.ShardWriter(path)
    second.write(records[0])
    for record in records[25:]:
        first.write(record)
    first.__exit__(None, None, None)
    assert path.read_bytes() == (tmp_path / "whole.arrayrecord").read_bytes()
    shards.remove_stale(tmp_path, "train")
    with pytest.raises(OSError, match=f"{path.name}: its unfinished file is gone.*second command"):
        second.__exit__(None, None, None)
    assert path.read_bytes() == (tmp_path / "whole.arrayrecord").read_bytes()


def test_damaged_files_are_named(tmp_path):
    rng = np.random.default_rng(0)
    doc = dataclasses.replace(document(2000), tokens=rng.integers(0, 2**31 - 1, 2000).astype(np.int32))
    path = tmp_path / shards.shard_name("train", 0, 1)
    write(path, [schema.encode_document(doc)] * 50)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SchemaError, match=f"{path.name}.*truncated or corrupt"):
        list(shards.read_documents(tmp_path, "train"))
    broken = bytearray(data)
    broken[100_000] ^= 255
    path.write_bytes(bytes(broken))
    with pytest.raises(SchemaError, match=rf"{path.name}: record \d+: corrupt"):
        list(shards.read_documents(tmp_path, "train"))
    path.write_bytes(b"")
    with pytest.raises(SchemaError, match=path.name):
        list(shards.read_documents(tmp_path, "train"))


def info(tokens=3, **kwargs):
    counts = Counts()
    counts.add(document(tokens))
    counts.drop("z", "empty transcript")
    return DatasetInfo(
        **{"kind": "documents", "vocabulary": VOCABULARY, "splits": {"train": counts.to_dict()}} | kwargs
    )


def test_info_round_trip_and_merge(tmp_path):
    write_info(tmp_path, info(4))
    assert read_info(tmp_path, "documents", VOCABULARY.fingerprint) == info(4)
    merged = merge_infos([info(4), info(6), info(5, splits={"test": info(5).splits["train"]})])
    train = Counts.from_dict(merged.splits["train"])
    assert (train.documents, train.tokens, train.longest) == (2, 10, 6)
    assert train.by_task == {"asr": {"documents": 2, "tokens": 10}}
    assert train.by_modality == {"speech": 5, "text": 5}
    assert train.dropped == {"empty transcript": 2} and len(train.dropped_list) == 2
    assert Counts.from_dict(merged.splits["test"]).tokens == 5
    with pytest.raises(SchemaError, match="part 2 has other settings than the first"):
        merge_infos([info(), info(settings={"template": "paper"})])


def test_info_errors_name_file_and_fingerprints(tmp_path):
    with pytest.raises(SchemaError, match="dataset.json is missing"):
        read_info(tmp_path)
    path = write_info(tmp_path, info())
    with pytest.raises(SchemaError, match="holds documents, but packed are needed; run pack_shards"):
        read_info(tmp_path, "packed")
    with pytest.raises(VocabularyError, match=f"{VOCABULARY.fingerprint}.*0123456789abcdef"):
        read_info(tmp_path, fingerprint="0123456789abcdef")
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"schema_version": 9}))
    with pytest.raises(SchemaError, match="schema version 9"):
        read_info(tmp_path)
    path.write_text(json.dumps(data | {"vocabulary_fingerprint": "f" * 16}))
    with pytest.raises(VocabularyError, match="edited by hand"):
        read_info(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(SchemaError, match="damaged"):
        read_info(tmp_path)


def test_a_pool_keeps_few_shards_open_and_serves_threads(tmp_path):
    paths = [tmp_path / shards.shard_name("train", i, 12) for i in range(12)]
    for i, path in enumerate(paths):
        with shards.ShardWriter(path) as writer:
            for j in range(i):  # the first has no record
                writer.write(bytes([i, j]) * 100)
    pool, opened = shards.ReaderPool(3), len(list(Path("/proc/self/fd").iterdir()))

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, 12, 200).tolist():
            assert pool[paths[i]].read(range(i)) == [bytes([i, j]) * 100 for j in range(i)]

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(read, range(4)))
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened + 3
    pool.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened


FULL_DISK = """
import os, resource, signal, sys
from data_pipelines.shards import ShardWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    with ShardWriter(sys.argv[1]) as writer:
        for _ in range(int(sys.argv[2])):
            writer.write(os.urandom(10_000))
except OSError as e:
    sys.exit(str(e))
"""


@pytest.mark.parametrize("records", [21, 400])
def test_a_full_disk_leaves_no_shard(tmp_path, records):
    """A process that may write 200 kB a file meets what a full disk gives."""
    path = tmp_path / shards.shard_name("train", 0, 1)
    command = [sys.executable, "-c", FULL_DISK, str(path), str(records)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 1 and "cannot be written" in done.stderr and "is the disk full" in done.stderr
    assert list(tmp_path.iterdir()) == []
