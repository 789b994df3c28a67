"""pack_shards: all documents arrive once, equal bytes after any interruption, errors that name and advise."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpus import VOCABULARY, make_documents, write_documents

from ar_omni_jax.documents import GROUPS
from ar_omni_jax.vocabulary import VocabularyError, compact_vocabulary
from data_pipelines import pack_shards, packing, schema, shards
from data_pipelines.dataset_info import read_info
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.schema import SchemaError

OPTIONS = PackOptions(512, unit_tokens=12_000)


def key(tokens, classes):
    return tokens.tobytes() + classes.tobytes()


def rows_of(directory, split="train"):
    for group in GROUPS:
        for path in shards.shard_paths(Path(directory) / split, group):
            for i, data in shards.read_records(path):
                yield group, schema.decode_packed(data, VOCABULARY, f"{path}: {i}")


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(Path(directory).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("documents")
    splits = {"train": make_documents(300), "validation": make_documents(30, seed=1)}
    write_documents(directory, splits)
    return directory, splits


@pytest.fixture(scope="module")
def packed(corpus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed")
    return directory, pack(corpus[0], directory, OPTIONS)


def test_every_document_arrives_once_in_its_group(corpus, packed):
    directory, info = packed
    for split, docs in corpus[1].items():
        want = Counter((d.group, key(d.tokens, d.classes())) for d in docs)
        got = Counter((g, key(*doc)) for g, row in rows_of(directory, split) for doc in packing.unpack_row(row))
        assert got == want
        entry = info.splits[split]
        assert entry["tokens"] == sum(len(d.tokens) for d in docs) and entry["dropped_tokens"] == 0
        assert entry["rows"] == Counter(g for g, _ in rows_of(directory, split))
    assert read_info(directory, "packed", VOCABULARY.fingerprint) == info
    assert info.settings["template"] == "paper" and info.tokenizers == {"text": "test"}
    assert not [p for p in directory.iterdir() if p.name.startswith(".")]


def test_fill_is_measured_and_high(tmp_path):
    write_documents(tmp_path / "in", {"train": make_documents(3000, kinds=[0])})
    info = pack(tmp_path / "in", tmp_path / "out", PackOptions(512))
    rows = [row for _, row in rows_of(tmp_path / "out")]
    measured = np.mean([np.mean(row.segment_ids > 0) for row in rows])
    assert info.splits["train"]["fill"]["text"] == pytest.approx(measured, abs=1e-6)
    assert measured >= 0.98


def test_low_fill_comes_with_advice_that_helps(tmp_path):
    write_documents(tmp_path / "in", {"train": make_documents(200, kinds=[1], low=150, high=160)})
    info = pack(tmp_path / "in", tmp_path / "out", PackOptions(200))
    assert info.splits["train"]["fill"]["image"] < 0.8
    advised = int(pack_shards.summary(info).split("--length=")[1])
    info = pack(tmp_path / "in", tmp_path / "better", PackOptions(advised))
    assert info.splits["train"]["fill"]["image"] > 0.95 and "low fill" not in pack_shards.summary(info)


def test_topping_up_loses_nothing_and_fills_rows(tmp_path, monkeypatch):
    docs = make_documents(400, kinds=[1], low=88, high=104) + make_documents(600, 1, kinds=[0], low=11, high=60)
    docs += make_documents(100, 2, kinds=[3], low=40, high=200)
    docs = [dataclasses.replace(doc, id=str(i)) for i, doc in enumerate(docs)]
    write_documents(tmp_path / "in", {"train": docs})
    info = pack(tmp_path / "in", tmp_path / "out", PackOptions(512, unit_tokens=30_000, top_up="text"))
    entry, rows = info.splits["train"], list(rows_of(tmp_path / "out"))
    got = Counter(key(*doc) for _, row in rows for doc in packing.unpack_row(row))
    assert got == Counter(key(d.tokens, d.classes()) for d in docs)
    measured = {g: np.mean([np.mean(row.segment_ids > 0) for name, row in rows if name == g]) for g in GROUPS}
    assert entry["fill"] == pytest.approx(measured, abs=1e-6) and measured["image"] >= 0.98
    assert sum(entry["row_tokens"].values()) == entry["tokens"] and entry["by_group"]["text"]["documents"] == 600
    plain = pack(tmp_path / "in", tmp_path / "plain", PackOptions(512, unit_tokens=30_000))
    assert plain.splits["train"]["fill"]["image"] < 0.95 and "--top_up=text" in pack_shards.summary(plain)
    again = pack(tmp_path / "in", tmp_path / "again", PackOptions(512, unit_tokens=30_000, top_up="text"))
    assert again == info and contents(tmp_path / "again") == contents(tmp_path / "out")
    with pytest.raises(SchemaError, match="packed with settings.*top_up"):
        pack(tmp_path / "in", tmp_path / "out", PackOptions(512, unit_tokens=30_000), ["train"])
    with pytest.raises(ValueError, match="top_up 'video' is not one of text, image, speech"):
        PackOptions(512, top_up="video")


def test_documents_are_shuffled_by_seed(corpus, packed, tmp_path):
    names = {key(d.tokens, d.classes()): i for i, d in enumerate(corpus[1]["train"]) if d.group == "text"}
    orders = []
    for seed in (0, 1):
        pack(corpus[0], tmp_path / str(seed), PackOptions(512, seed), ["train"])
        rows = [row for g, row in rows_of(tmp_path / str(seed)) if g == "text"]
        orders.append([names[key(*doc)] for row in rows for doc in packing.unpack_row(row)])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert abs(np.corrcoef(orders[0], np.arange(len(orders[0])))[0, 1]) < 0.4


def test_interrupted_job_resumes_to_equal_bytes(corpus, packed, tmp_path, monkeypatch):
    real, calls = pack_shards.SplitPacker._write_rows, []

    def failing(self, unit, group, *args):
        calls.append((unit, group))
        if len(calls) in (2, 6, 9):  # within a unit and between units
            raise KeyboardInterrupt
        return real(self, unit, group, *args)

    monkeypatch.setattr(pack_shards.SplitPacker, "_write_rows", failing)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            pack(corpus[0], tmp_path, OPTIONS)
        assert not (tmp_path / "dataset.json").exists()
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0])
    count = len(calls)
    pack(corpus[0], tmp_path, OPTIONS)
    assert len(calls) == count, "a finished data set was packed again"


def test_killed_process_resumes_to_equal_bytes(corpus, packed, tmp_path):
    command = [sys.executable, "-m", "data_pipelines.pack_shards", f"--input={corpus[0]}", f"--output={tmp_path}"]
    command += ["--length=512", "--unit_tokens=12000"]
    job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.arrayrecord")) and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    job.send_signal(signal.SIGKILL)
    job.wait()
    (tmp_path / "train").mkdir(exist_ok=True)
    (tmp_path / "train" / ".text-00000-of-00006.arrayrecord.1.tmp").write_bytes(b"left by a killed writer")
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0])


def test_other_options_do_not_mix_into_a_begun_or_finished_output(corpus, packed, tmp_path):
    with pytest.raises(SchemaError, match="--overwrite"):
        pack(corpus[0], packed[0], PackOptions(1024))
    packer = pack_shards.SplitPacker(corpus[0], tmp_path, "train", read_info(corpus[0]), OPTIONS)
    packer._check_plan()
    with pytest.raises(SchemaError, match="begun with other options"):
        pack(corpus[0], tmp_path, PackOptions(512, seed=5), ["train"])
    info = pack(corpus[0], tmp_path, PackOptions(512, seed=5), ["train"], overwrite=True)
    assert info.settings["seed"] == 5 and list(info.splits) == ["train"]


def test_overlong_documents_by_rule(tmp_path):
    docs = make_documents(60, low=100, high=400)
    long = [d for d in docs if len(d.tokens) > 256]
    write_documents(tmp_path / "in", {"train": docs})
    with pytest.raises(SchemaError, match=rf"{len(long)} of 60 documents are longer than a row of 256: doc\d+ \(") as e:
        pack(tmp_path / "in", tmp_path / "error", PackOptions(256))
    assert "--overlong=split" in str(e.value) and not list((tmp_path / "error").rglob("*.arrayrecord"))

    entry = pack(tmp_path / "in", tmp_path / "drop", PackOptions(256, overlong="drop_counted")).splits["train"]
    assert entry["dropped"] == {"longer than 256 tokens": len(long)}
    assert {d["id"] for d in entry["dropped_list"]} == {d.id for d in long}
    assert entry["dropped_tokens"] == sum(len(d.tokens) for d in long)
    assert entry["documents"] == 60 - len(long)

    info = pack(tmp_path / "in", tmp_path / "split", PackOptions(256, overlong="split"))
    entry = info.splits["train"]
    assert entry["cut"]["documents"] == len(long) and entry["cut"]["pieces"] >= 2 * len(long)
    assert entry["tokens"] == sum(len(d.tokens) for d in docs) and not entry["dropped"]
    assert f"{len(long)} documents cut into" in pack_shards.summary(info)


def test_damaged_or_foreign_input_is_named(corpus, tmp_path):
    docs = make_documents(20)
    write_documents(tmp_path / "short", {"train": docs})
    next((tmp_path / "short").glob("train-00001*")).unlink()
    with pytest.raises(SchemaError, match=r"lacks shards \[1\]"):
        pack(tmp_path / "short", tmp_path / "out", OPTIONS)
    write_documents(tmp_path / "fewer", {"train": docs})
    path = tmp_path / "fewer" / "dataset.json"
    data = json.loads(path.read_text())
    data["splits"]["train"]["documents"] += 1
    path.write_text(json.dumps(data))
    with pytest.raises(SchemaError, match="hold 20 documents, dataset.json says 21"):
        pack(tmp_path / "fewer", tmp_path / "out", OPTIONS)
    small = compact_vocabulary(10, 20, 20, (2, 2))
    info = write_documents(tmp_path / "foreign", {"train": docs})
    info.vocabulary = small
    pack_shards.write_info(tmp_path / "foreign", info)
    with pytest.raises(VocabularyError, match=r"train-0000\d-of-00003.arrayrecord: record \d+: document 'doc\d+'"):
        pack(tmp_path / "foreign", tmp_path / "out", OPTIONS)
    with pytest.raises(SchemaError, match="no test shards; it has"):
        pack(corpus[0], tmp_path / "out2", OPTIONS, ["test"])


def test_command_line_prints_fill_or_a_plain_error(corpus, tmp_path, capsys):
    pack_shards.main([f"--input={corpus[0]}", f"--output={tmp_path}", "--length=512", "--split=validation"])
    assert "validation/speech:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="pack_shards: .*dataset.json is missing"):
        pack_shards.main([f"--input={tmp_path}{os.sep}none", f"--output={tmp_path}", "--length=512"])
