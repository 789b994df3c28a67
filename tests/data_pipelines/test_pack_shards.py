"""pack_shards: all documents arrive once, equal bytes after any interruption, errors that name and advise."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpus import VOCABULARY, contents, key, make_documents, rows_of, write_documents

from ar_omni_jax.documents import GROUPS
from ar_omni_jax.files import only_writer
from ar_omni_jax.vocabulary import Modality, VocabularyError, compact_vocabulary
from data_pipelines import pack_shards, packing
from data_pipelines.dataset_info import read_info, write_info
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.schema import SchemaError

OPTIONS = PackOptions(512, unit_tokens=12_000)


def interrupt(*_):
    raise KeyboardInterrupt


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


def test_advice_is_none_that_was_taken_or_cannot_help(tmp_path):
    for kind, top_up, helps in ((0, "", False), (1, "", True), (1, "text", False)):
        folder = tmp_path / f"{kind}{top_up}"
        write_documents(folder / "in", {"train": make_documents(30, kinds=[kind], low=150, high=160)})
        text = pack_shards.summary(pack(folder / "in", folder / "out", PackOptions(200, top_up=top_up)))
        assert "low fill" in text and "try --length=" in text and ("--top_up=text" in text) == helps


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


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_lost_while_the_job_was_stopped_is_made_again(corpus, packed, tmp_path, monkeypatch, cut):
    real = pack_shards.SplitPacker._write_rows

    def failing(self, unit, *args):
        if unit == 3:
            raise KeyboardInterrupt
        return real(self, unit, *args)

    monkeypatch.setattr(pack_shards.SplitPacker, "_write_rows", failing)
    with pytest.raises(KeyboardInterrupt):
        pack(corpus[0], tmp_path, OPTIONS, ["train"])
    monkeypatch.undo()
    lost = next((tmp_path / "train").glob("image-00001-of-*"))
    lost.write_bytes(lost.read_bytes()[:1000]) if cut else lost.unlink()
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0])


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


def test_two_commands_do_not_write_the_same_output(corpus, packed, tmp_path):
    with only_writer(tmp_path), pytest.raises(SchemaError, match="another pack_shards is writing here.*--output"):
        pack(corpus[0], tmp_path, OPTIONS)
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0])


def test_several_inputs_are_packed_as_one(corpus, tmp_path):
    docs = {"a": make_documents(80, 1, kinds=[1, 2]), "b": make_documents(90, 2, kinds=[3]), "c": make_documents(70, 3)}
    write_documents(tmp_path / "a", {"train": docs["a"], "validation": make_documents(9, 4)})
    write_documents(tmp_path / "b", {"train": docs["b"]}, shard_count=2)
    write_documents(tmp_path / "c", {"train": docs["c"]})
    folders = [tmp_path / name for name in "abc"]
    options = PackOptions(512, unit_tokens=20_000)
    info = pack(folders, tmp_path / "out", options)
    want = Counter((d.group, key(d.tokens, d.classes())) for name in "abc" for d in docs[name])
    got = Counter((g, key(*doc)) for g, row in rows_of(tmp_path / "out") for doc in packing.unpack_row(row))
    assert got == want and list(info.splits) == ["train", "validation"]
    assert info.splits["train"]["documents"] == 240 and info.splits["validation"]["documents"] == 9
    speech = {key(d.tokens, d.classes()) for d in docs["b"]}
    rows = [row for group, row in rows_of(tmp_path / "out") if group == "speech"]
    mixed = [{key(*doc) in speech for doc in packing.unpack_row(row)} for row in rows]
    assert {True, False} in mixed, "documents of different inputs never stand in one row"
    assert pack(folders, tmp_path / "out", options) == info  # it is there already
    with pytest.raises(SchemaError, match="packed from other documents"):
        pack(folders[:2], tmp_path / "out", options)
    with pytest.raises(SchemaError, match="a is given twice"):
        pack([folders[0], tmp_path / "b" / ".." / "a"], tmp_path / "two", options)
    other = write_documents(tmp_path / "d", {"train": docs["c"]})
    other.settings = {"template": "released"}
    write_info(tmp_path / "d", other)
    with pytest.raises(SchemaError, match="d has other settings than the first: .*released.*paper"):
        pack([*folders, tmp_path / "d"], tmp_path / "two", options)
    pack_shards.main([*(f"--input={f}" for f in folders), f"--output={tmp_path / 'cli'}", "--length=512"])
    assert read_info(tmp_path / "cli").splits["train"]["documents"] == 240


def test_documents_that_only_look_the_same_are_not_taken_for_those_packed(tmp_path):
    """As a build with other noise: as many documents and tokens, other codes."""
    docs = make_documents(40, kinds=[3])
    write_documents(tmp_path / "in", {"train": docs})
    pack(tmp_path / "in", tmp_path / "out", OPTIONS)
    first = contents(tmp_path / "out")
    pack(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == first
    speech = VOCABULARY.range_of(Modality.SPEECH)
    for doc in docs:
        heard = (doc.tokens >= speech.start) & (doc.tokens < speech.stop)
        doc.tokens[heard] = speech.start + (doc.tokens[heard] - speech.start + 1) % speech.count
    write_documents(tmp_path / "in", {"train": docs})
    with pytest.raises(SchemaError, match="was packed from other documents; run with --overwrite"):
        pack(tmp_path / "in", tmp_path / "out", OPTIONS)
    pack(tmp_path / "in", tmp_path / "out", OPTIONS, overwrite=True)
    assert {key(*doc) for _, row in rows_of(tmp_path / "out") for doc in packing.unpack_row(row)} == {
        key(d.tokens, d.classes()) for d in docs
    }


def test_what_was_packed_before_there_was_a_digest_of_shards_is_left_alone(corpus, packed, tmp_path):
    shutil.copytree(packed[0], tmp_path, dirs_exist_ok=True)
    data = json.loads((tmp_path / "dataset.json").read_text())
    for entry in data["splits"].values():
        del entry["origin"]["shards"]
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    before = contents(tmp_path)
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == before


def test_a_shard_that_is_gone_is_made_again(corpus, packed, tmp_path):
    shutil.copytree(packed[0], tmp_path, dirs_exist_ok=True)
    gone, cut = sorted((tmp_path / "train").glob("*"))[1:3]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0])


def test_an_interrupted_overwrite_is_not_taken_for_finished(corpus, packed, tmp_path, monkeypatch):
    shutil.copytree(packed[0], tmp_path, dirs_exist_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(pack_shards.SplitPacker, "_write_rows", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack(corpus[0], tmp_path, OPTIONS, ["train"], overwrite=True)
    assert list(read_info(tmp_path).splits) == ["validation"]
    pack(corpus[0], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(packed[0])


def test_a_split_without_documents_is_told(tmp_path):
    write_documents(tmp_path / "in", {"train": make_documents(5), "empty": []})
    with pytest.raises(SchemaError, match="empty has no documents, every record was left out"):
        pack(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert pack(tmp_path / "in", tmp_path / "out", OPTIONS, ["train"]).splits["train"]["documents"] == 5


MANY_FILES = """
import resource, sys
from corpus import make_documents, write_documents
from data_pipelines.loader import make_loader
from data_pipelines.pack_shards import PackOptions, pack
from pathlib import Path
root = Path(sys.argv[1])
documents = make_documents(400, kinds=[0, 1, 3], low=33, high=60)
write_documents(root / "in", {"train": documents}, shard_count=400)
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
pack(root / "in", root / "out", PackOptions(64, unit_tokens=100))
data = {"path": root / "out", "stop": "all_exhausted"}
with make_loader(data, split="train", global_batch=4, seed=0, threads=4) as loader:
    rows = {row.tobytes() for batch in loader for row in batch["tokens"]}
assert len(rows) == len({d.tokens.tobytes() for d in documents}), len(rows)
print("shards:", len(list((root / "out").rglob("*.arrayrecord"))))
"""


def test_more_shards_than_a_process_may_have_open(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", MANY_FILES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 300


def test_other_options_do_not_mix_into_a_begun_or_finished_output(corpus, packed, tmp_path, monkeypatch):
    with pytest.raises(SchemaError, match="--overwrite"):
        pack(corpus[0], packed[0], PackOptions(1024))
    with monkeypatch.context() as patch:
        patch.setattr(pack_shards.SplitPacker, "_write_rows", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack(corpus[0], tmp_path, OPTIONS, ["train"])
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
    write_info(tmp_path / "foreign", info)
    with pytest.raises(VocabularyError, match=r"train-0000\d-of-00003.arrayrecord: record \d+: document 'doc\d+'"):
        pack(tmp_path / "foreign", tmp_path / "out", OPTIONS)
    with pytest.raises(SchemaError, match="no test shards; it has"):
        pack(corpus[0], tmp_path / "out2", OPTIONS, ["test"])


def test_command_line_prints_fill_or_a_plain_error(corpus, tmp_path, capsys):
    pack_shards.main([f"--input={corpus[0]}", f"--output={tmp_path}", "--length=512", "--split=validation"])
    assert "validation/speech:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="pack_shards: .*dataset.json is missing"):
        pack_shards.main([f"--input={tmp_path}{os.sep}none", f"--output={tmp_path}", "--length=512"])
