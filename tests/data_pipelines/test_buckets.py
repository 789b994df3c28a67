"""pack_shards --overlong=bucket: whole documents in longer rows, each once, in data sets that every reader takes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpus import VOCABULARY, contents, key, make_document, make_documents, rows_of, write_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import buckets, inspect_shards, pack_shards, packing, shards
from data_pipelines.dataset_info import read_info
from data_pipelines.loader import make_loader
from data_pipelines.mixture import MixtureError
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.schema import SchemaError

OPTIONS = PackOptions(128, overlong="bucket", unit_tokens=6000, bucket_lengths=(256, 512))
FOLDERS = {128: "", 256: "rows-256", 512: "rows-512"}


def interrupt(*_):
    raise KeyboardInterrupt


def documents_in(directory, split="train"):
    """Counter of (group, content) of all documents in packed rows; nothing where there is no such data set."""
    return Counter((group, key(*doc)) for group, row in rows_of(directory, split) for doc in packing.unpack_row(row))


def wanted(docs):
    return Counter((d.group, key(d.tokens, d.classes())) for d in docs)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """240 documents to train on, of 20 to 500 tokens, and 20 others, of which none is longer than 256."""
    directory = tmp_path_factory.mktemp("documents")
    splits = {"train": make_documents(240, high=500), "validation": make_documents(20, seed=1, high=250)}
    write_documents(directory, splits)
    return directory, splits


@pytest.fixture(scope="module")
def packed(corpus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed")
    return directory, pack(corpus[0], directory, OPTIONS)


def test_every_document_is_in_the_shortest_rows_that_hold_it(corpus, packed):
    directory, info = packed
    for split, docs in corpus[1].items():
        shorter = 0
        for length, name in FOLDERS.items():
            here = [d for d in docs if shorter < len(d.tokens) <= length]
            assert documents_in(directory / name, split) == wanted(here)
            assert {len(row.tokens) for _, row in rows_of(directory / name, split)} <= {length}
            shorter = length
            if not here:
                assert not (directory / name / split).exists() and split not in read_info(directory / name).splits
                continue
            entry = read_info(directory / name, "packed", VOCABULARY.fingerprint).splits[split]
            assert entry["documents"] == len(here) and entry["tokens"] == sum(len(d.tokens) for d in here)
            assert not entry["dropped"] and not entry["cut"]["documents"]
            if name:
                told = info.splits[split]["longer"][name]
                groups = {g: {"documents": 0, "tokens": 0} for g in {d.group for d in here}}
                for doc in here:
                    groups[doc.group]["documents"] += 1
                    groups[doc.group]["tokens"] += len(doc.tokens)
                assert told == {"documents": len(here), "tokens": entry["tokens"], "by_group": groups}
    assert list(info.splits["validation"]["longer"]) == ["rows-256"]
    assert read_info(directory) == info and info.length == 128 and info.settings["bucket_lengths"] == [256, 512]
    long = read_info(directory / "rows-512")
    assert long.length == 512 and long.settings["longer_than"] == 256 and long.settings["template"] == "paper"
    assert not [p for p in directory.rglob(".*")]


LENGTHS = st.lists(st.integers(4, 90), min_size=1, max_size=30)
ROWS = st.sets(st.integers(8, 70), min_size=2, max_size=4).map(sorted)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, ROWS, st.sampled_from(["split", "drop_counted"]), st.sampled_from(["", "text"]), st.integers(150, 2000))
def test_no_token_is_lost_or_doubled(lengths, rows, beyond, top_up, unit_tokens):
    rng = np.random.default_rng(0)
    docs = [make_document(f"doc{i}", int(rng.integers(5)), n, rng) for i, n in enumerate(lengths)]
    options = PackOptions(rows[0], 3, "bucket", unit_tokens, top_up, tuple(rows[1:]), beyond)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_documents(root / "in", {"train": docs})
        entry = pack(root / "in", root / "out", options).splits["train"]
        sets = [root / "out", *(root / "out" / name for name in entry["longer"])]
        found = [(read_info(path), Counter(doc for _, doc in documents_in(path).elements())) for path in sets]
    kept = [d for d in docs if len(d.tokens) <= rows[-1]]
    long = [d for d in docs if len(d.tokens) > rows[-1]]
    pieces = [piece for d in long for piece in packing.split_document(d, rows[-1])] if beyond == "split" else []
    assert sum((there for _, there in found), Counter()) == Counter(key(d.tokens, d.classes()) for d in kept + pieces)
    dropped = {d["id"] for info, _ in found for d in info.splits["train"]["dropped_list"]}
    assert dropped == ({d.id for d in long} if beyond == "drop_counted" else set())
    told = sum(part["documents"] for part in entry["longer"].values()) + entry["documents"]
    assert told == len(docs)
    tokens = sum(info.splits["train"]["tokens"] + info.splits["train"]["dropped_tokens"] for info, _ in found)
    assert tokens == sum(lengths)


def test_each_data_set_is_what_packing_its_documents_alone_would_give(tmp_path):
    docs = make_documents(150, high=500)
    write_documents(tmp_path / "in", {"train": docs}, shard_count=1)
    pack(tmp_path / "in", tmp_path / "out", OPTIONS)
    shorter = 0
    for length, name in FOLDERS.items():
        here = [d for d in docs if shorter < len(d.tokens) <= length]
        write_documents(tmp_path / f"in{length}", {"train": here}, shard_count=1)
        pack(tmp_path / f"in{length}", tmp_path / f"alone{length}", PackOptions(length, unit_tokens=6000))
        assert contents(tmp_path / f"alone{length}" / "train") == contents(tmp_path / "out" / name / "train")
        shorter = length


def test_longer_rows_are_read_as_any_others(corpus, packed, capsys):
    folder = packed[0] / "rows-256"
    data = {"path": folder, "length": 256, "stop": "all_exhausted"}
    with make_loader(data, split="train", global_batch=4, seed=0) as loader:
        rows = {tokens.tobytes() for batch in loader for tokens in batch["tokens"]}
        assert rows == {row.tokens.tobytes() for _, row in rows_of(folder)} and loader.length == 256
    found = inspect_shards.inspect(folder, splits=["train"])["train"]
    assert sum(group.documents for group in found.values()) == sum(documents_in(folder).values())
    assert "longer_than=128" in capsys.readouterr().out
    inspect_shards.inspect(packed[0], splits=["train"])
    longer = read_info(packed[0]).splits["train"]["longer"]["rows-256"]["documents"]
    assert longer and f"train: {longer} documents in longer rows: rows-256" in capsys.readouterr().out
    with pytest.raises(SchemaError, match=r"rows-256 has rows of 256 tokens, the config says 128; set data.length=256"):
        make_loader(data | {"length": 128}, split="train", global_batch=4, seed=0)


def test_interrupted_anywhere_it_resumes_to_equal_bytes(corpus, packed, tmp_path, monkeypatch):
    real, calls = pack_shards.SplitPacker._write_rows, []
    counted, counts = buckets._count, []

    def failing(self, unit, group, *args):
        calls.append((self.options.length, unit, group))
        if len(calls) in (2, 9, 14):
            raise KeyboardInterrupt
        return real(self, unit, group, *args)

    def failing_count(*args):
        counts.append(args)
        if len(counts) == 30:
            raise KeyboardInterrupt
        return counted(*args)

    monkeypatch.setattr(pack_shards.SplitPacker, "_write_rows", failing)
    monkeypatch.setattr(buckets, "_count", failing_count)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            pack(corpus[0], tmp_path, OPTIONS, ["train"])
        assert not (tmp_path / "dataset.json").exists()
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0]) and {length for length, *_ in calls} == set(FOLDERS)
    before = len(calls), len(counts)
    pack(corpus[0], tmp_path, OPTIONS)
    assert (len(calls), len(counts)) == before, "a finished data set was packed again"


COMMAND = ["--length=128", "--unit_tokens=6000", "--overlong=bucket", "--bucket_lengths=256,512"]


@pytest.mark.parametrize(
    "when", ["*.numbers", "rows-256/*/*.arrayrecord", pytest.param("train/*.arrayrecord", marks=pytest.mark.slow)]
)
def test_killed_process_resumes_to_equal_bytes(corpus, packed, tmp_path, when):
    command = [sys.executable, "-m", "data_pipelines.pack_shards", f"--input={corpus[0]}", f"--output={tmp_path}"]
    job = subprocess.Popen([*command, *COMMAND], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob(when)) and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    job.send_signal(signal.SIGKILL)
    job.wait()
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0])


@pytest.mark.parametrize("folder", ["", "rows-256", "rows-512"])
def test_a_shard_that_is_gone_is_made_again_alone(corpus, packed, tmp_path, folder, monkeypatch):
    shutil.copytree(packed[0], tmp_path, dirs_exist_ok=True)
    sorted((tmp_path / folder / "train").glob("*.arrayrecord"))[0].unlink()
    real, made = pack_shards.SplitPacker._write_rows, set()

    def counting(self, *args):
        made.add(self.directory)
        return real(self, *args)

    monkeypatch.setattr(pack_shards.SplitPacker, "_write_rows", counting)
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0]) and made == {tmp_path / folder / "train"}


def test_documents_longer_than_all_rows_follow_their_rule(tmp_path):
    docs = make_documents(60, low=100, high=400)
    write_documents(tmp_path / "in", {"train": docs})
    long = [d for d in docs if len(d.tokens) > 300]
    longest = max(len(d.tokens) for d in docs)
    options = {"overlong": "bucket", "bucket_lengths": (200, 300)}
    with pytest.raises(
        SchemaError, match=rf"{len(long)} of 60 documents are longer than the longest rows, of 300: doc"
    ) as e:
        pack(tmp_path / "in", tmp_path / "error", PackOptions(128, **options))
    assert f"add {longest} to --bucket_lengths" in str(e.value) and "--beyond_buckets=split" in str(e.value)
    assert not contents(tmp_path / "error")
    advised = {"overlong": "bucket", "bucket_lengths": (200, 300, longest)}
    assert pack(tmp_path / "in", tmp_path / "error", PackOptions(128, **advised)).splits["train"]["longer"]

    info = pack(tmp_path / "in", tmp_path / "split", PackOptions(128, **options, beyond_buckets="split"))
    entry = read_info(tmp_path / "split" / "rows-300").splits["train"]
    pieces = sum(len(packing.split_document(d, 300)) for d in long)
    assert entry["cut"] == {"documents": len(long), "pieces": pieces} and info.splits["train"]["cut"]["documents"] == 0
    dropped = pack(tmp_path / "in", tmp_path / "drop", PackOptions(128, **options, beyond_buckets="drop_counted"))
    entry = read_info(tmp_path / "drop" / "rows-300").splits["train"]
    assert entry["dropped"] == {"longer than 300 tokens": len(long)}
    assert {d["id"] for d in entry["dropped_list"]} == {d.id for d in long}
    assert dropped.splits["train"] == info.splits["train"] | {"origin": dropped.splits["train"]["origin"]}


def test_a_split_of_long_documents_only_or_of_none(tmp_path):
    long, short = make_documents(12, low=200, high=256), make_documents(12, low=20, high=100)
    write_documents(tmp_path / "in", {"train": long, "validation": short})
    options = PackOptions(128, overlong="bucket", bucket_lengths=(256,))
    info = pack(tmp_path / "in", tmp_path / "out", options)
    assert info.splits["train"]["rows"] == {} and info.splits["train"]["documents"] == 0
    assert info.splits["validation"]["longer"] == {} and documents_in(tmp_path / "out", "validation") == wanted(short)
    assert documents_in(tmp_path / "out" / "rows-256") == wanted(long)
    before = contents(tmp_path / "out")
    assert pack(tmp_path / "in", tmp_path / "out", options) == info and contents(tmp_path / "out") == before
    assert "train: 12 documents" in pack_shards.summary(info) and "in longer rows: rows-256" in pack_shards.summary(
        info
    )
    with pytest.raises(MixtureError, match="no rows of group text"):
        make_loader({"path": tmp_path / "out"}, split="train", global_batch=4, seed=0)
    inspect_shards.inspect(tmp_path / "out")
    plain = pack(tmp_path / "in", tmp_path / "plain", PackOptions(128), ["validation"])
    assert contents(tmp_path / "plain" / "validation") == contents(tmp_path / "out" / "validation")
    assert "longer" not in plain.splits["validation"] and "bucket_lengths" not in plain.settings


def test_other_buckets_do_not_mix_into_a_begun_or_finished_output(corpus, packed, tmp_path, monkeypatch):
    other = PackOptions(128, overlong="bucket", unit_tokens=6000, bucket_lengths=(512,))
    with pytest.raises(SchemaError, match="packed with settings .*256, 512.*--overwrite"):
        pack(corpus[0], packed[0], other)
    for when, options in (("sorted", other), ("packed", PackOptions(128, overlong="split", unit_tokens=6000))):
        with monkeypatch.context() as patch:
            patch.setattr(pack_shards.SplitPacker, "_write_rows", interrupt)
            with contextlib.suppress(KeyboardInterrupt):
                pack(corpus[0], tmp_path / when, OPTIONS)
        with pytest.raises(SchemaError, match="begun with other options"):
            pack(corpus[0], tmp_path / when, options)
    pack(corpus[0], tmp_path / "sorted", other, overwrite=True)
    pack(corpus[0], tmp_path / "new", other)
    assert contents(tmp_path / "sorted") == contents(tmp_path / "new")
    shutil.copytree(packed[0], tmp_path / "old")
    pack(corpus[0], tmp_path / "old", other, overwrite=True)
    assert contents(tmp_path / "old") == contents(tmp_path / "new"), "shards of the other buckets are left"
    write_documents(tmp_path / "in", {"train": make_documents(200, seed=7, high=500)})
    with pytest.raises(SchemaError, match="packed from other documents"):
        pack(tmp_path / "in", tmp_path / "new", other)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"overlong": "bucket"},
            "needs bucket_lengths that ascend from above length 128, such as --bucket_lengths=512",
        ),
        ({"overlong": "bucket", "bucket_lengths": (128,)}, r"got \[128\]"),
        ({"overlong": "bucket", "bucket_lengths": (512, 256)}, r"got \[512, 256\]"),
        ({"overlong": "bucket", "bucket_lengths": (256, 256)}, r"got \[256, 256\]"),
        ({"overlong": "split", "bucket_lengths": (256,)}, "change nothing without overlong=bucket"),
        ({"beyond_buckets": "split"}, "change nothing without overlong=bucket"),
        (
            {"overlong": "bucket", "bucket_lengths": (256,), "beyond_buckets": "bucket"},
            "'bucket' is not one of error, ",
        ),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        PackOptions(128, **options)


def test_a_split_may_not_be_called_as_the_folders_are(tmp_path):
    write_documents(tmp_path / "in", {"rows-512": make_documents(5)})
    with pytest.raises(SchemaError, match="split 'rows-512' has the name of a folder of longer rows"):
        pack(tmp_path / "in", tmp_path / "out", OPTIONS)


def test_the_command(corpus, tmp_path, capsys):
    where = [f"--input={corpus[0]}", f"--output={tmp_path / 'out'}"]
    pack_shards.main([*where, *COMMAND])
    said = capsys.readouterr().out
    for name in ("rows-256", "rows-512"):
        assert f"in longer rows: {name}" in said and f"{tmp_path / 'out' / name}:\ntrain/" in said
    assert said.index("rows of 128") < said.index("rows of 256") < said.index("rows of 512")
    with pytest.raises(SystemExit):
        pack_shards.main([*where, "--length=128", "--overlong=bucket", "--bucket_lengths=2k"])
    assert "expected numbers of tokens such as 2048,8192, got '2k'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="pack_shards: overlong=bucket needs bucket_lengths"):
        pack_shards.main([*where, "--length=128", "--overlong=bucket"])


def test_a_power_failure_while_sorting_is_no_loss(corpus, packed, tmp_path):
    """Numbers without the record that they are whole are written anew."""
    state = tmp_path / ".pack-train"
    state.mkdir()
    (state / "rows-256.numbers").write_bytes(os.urandom(80))
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0])


def test_counts_that_are_not_of_the_documents_are_seen(tmp_path):
    docs = make_documents(40, high=250)
    write_documents(tmp_path / "in", {"train": docs})
    path = tmp_path / "in" / "dataset.json"
    data = json.loads(path.read_text())
    group = next(iter(data["splits"]["train"]["by_group"].values()))
    group["tokens"] += 1
    path.write_text(json.dumps(data))
    with pytest.raises(SchemaError, match="tokens packed and 0 dropped, but the documents have"):
        pack(tmp_path / "in", tmp_path / "out", PackOptions(128, overlong="bucket", bucket_lengths=(256,)))
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list(shards.shard_paths(tmp_path / "out" / "rows-512" / "train", "text"))
