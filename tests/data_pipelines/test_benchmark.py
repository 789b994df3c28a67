"""The benchmark measures what it says, on every part; no time decides a test."""

import importlib.util
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ar_omni_jax.vocabulary import chameleon_vocabulary
from data_pipelines.benchmark import __main__ as benchmark
from data_pipelines.benchmark import corpus, growth, readers
from data_pipelines.benchmark.memory import CommandFailed, peak_memory
from data_pipelines.dataset_info import read_info
from data_pipelines.decode import DecodeRequest, decode
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.shards import read_documents
from data_pipelines.sources import open_source
from data_pipelines.stage_clock import STAGES, StageClock


def test_all_ways_read_the_same_documents(tmp_path):
    vocabulary = chameleon_vocabulary()
    corpus.write_token_shards(tmp_path / "shards", 25, vocabulary)
    tokens = sum(len(doc.tokens) for doc in read_documents(tmp_path / "shards", "train", vocabulary))
    pack(tmp_path / "shards", tmp_path / "packed", PackOptions(8192))
    assert corpus.write_reference_jsonl(tmp_path / "a.jsonl", 25, vocabulary) == tokens
    padded = list(readers.jsonl_batches(tmp_path / "a.jsonl", 4, vocabulary.pad))
    assert len(padded) == 7 and sum(useful for useful, _ in padded) == tokens
    assert all(useful <= places for useful, places in padded)
    rows = read_info(tmp_path / "packed").splits["train"]["rows"]
    packed = list(readers.packed_batches(tmp_path / "packed", 1))
    assert len(packed) == sum(rows.values()) and sum(useful for useful, _ in packed) == tokens
    assert {places for _, places in packed} == {8192}


def test_the_reference_s_batch_is_as_long_as_its_longest_document(tmp_path):
    lines = [{"discrete_code": list(range(2, 2 + n)), "response": [1]} for n in (3, 5, 4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(readers.jsonl_batches(tmp_path / "a.jsonl", 2, 1)) == [(8, 10), (4, 4)]


def test_datasets_read_the_same(tmp_path):
    pytest.importorskip("datasets")
    vocabulary = chameleon_vocabulary()
    corpus.write_reference_jsonl(tmp_path / "a.jsonl", 9, vocabulary)
    found = readers.datasets_batches(tmp_path / "a.jsonl", 4, vocabulary.pad, tmp_path / "cache")
    assert list(found) == list(readers.jsonl_batches(tmp_path / "a.jsonl", 4, vocabulary.pad))


def test_measure_counts_one_pass_and_ends_what_it_read():
    closed = []

    def make():
        try:
            for size in (10, 4, 3):
                yield size, 10
        finally:
            closed.append(True)

    found = readers.measure(make, 0.02)
    assert found["useful"] == 7 / 20  # the first batch warms up
    assert found["tokens/s"] > 0 and len(closed) >= 1
    assert readers.measure(lambda: None, 1) is None


def test_a_clock_adds_up_stages_over_threads():
    clock = StageClock()
    sleep = clock.timed("decode", time.sleep)
    threads = [threading.Thread(target=sleep, args=(0.02,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(clock.each("read", iter("abc"))) == ["a", "b", "c"]
    with pytest.raises(ValueError), clock.stage("write"):
        raise ValueError
    assert clock.seconds["decode"] >= 0.06 and clock.seconds["read"] > 0 < clock.seconds["write"]
    assert clock.seconds["codec"] == 0 and "decode 0.1 in threads" in clock.line()
    clock.add("codec", 2.0)
    assert "in 3 processes" in clock.line(3) and "codec 2.0" in clock.line()


def test_peak_memory_is_of_the_command_alone():
    held = np.ones(50_000_000)  # 400 MB of this process
    peak = peak_memory("timeit", ["-n1", "-r1", "b'x' * 150_000_000"])
    assert 143 < peak < 300 and held[0]
    with pytest.raises(CommandFailed, match="timeit --nonsense failed"):
        peak_memory("timeit", ["--nonsense"])


HUNGRY = "import time; held = b'x' * 150_000_000; time.sleep(1)"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="other systems tell of the first process only")
def test_peak_memory_has_the_command_s_own_processes():
    def peak(count):
        one = f"subprocess.Popen([sys.executable, '-c', {HUNGRY!r}])"
        code = f"import subprocess, sys; [p.wait() for p in [{one} for _ in range({count})]]"
        return peak_memory("timeit", ["-n1", "-r1", code])

    assert 143 < peak(1) < 280 and 286 < peak(2) < 450


def test_the_parts_of_the_command(tmp_path, monkeypatch, capsys):
    def run_here(module, arguments):
        importlib.import_module(module).main(arguments)
        ran.append(module)
        return 100.0 + len(ran)

    ran: list[str] = []
    monkeypatch.setattr(growth, "peak_memory", run_here)
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it raises ImportError
    small = ["--documents=30", "--rows=2", "--seconds=0.01", "--media=4", "--memory_documents=6", "--length=8192"]
    monkeypatch.setattr(growth, "TIMES", 2)
    monkeypatch.setattr(growth, "COMMANDS", growth.COMMANDS[:1] + growth.COMMANDS[-4:])
    benchmark.main([*small, f"--output={tmp_path / 'b.json'}"])
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["machine"]["cores"] >= 1 and record["machine"]["processor"]
    ways = record["readers"]["ways"]
    assert ways["HF datasets, padded"] is None
    assert ways["packed shards, this loader"]["useful"] > 0.5 and ways["JSON lines on one rank, padded"]["useful"] < 1
    assert list(record["build"]["workers"]) == ["0", "2"] == list(record["build"]["decoded/s"])
    for run in record["build"]["workers"].values():
        assert set(run["stages"]) == set(STAGES) and all(run["stages"].values())
    assert list(record["memory"]) == list(growth.COMMANDS) and len(ran) == 2 * len(growth.COMMANDS)
    said = capsys.readouterr().out
    assert record["machine"]["processor"] in said and "not installed" in said and "peak memory" in said
    assert "build_shards, manifest" in said and "decoding alone" in said


@pytest.mark.parametrize("source", list(growth.SOURCES))
def test_corpora_of_every_layout_are_whole(tmp_path, monkeypatch, source):
    """Not only of one file, folder or row group."""
    if source == "hf_parquet":
        pytest.importorskip("pyarrow")
    for name in ("_PER_FILE", "_PER_FOLDER"):
        monkeypatch.setattr(corpus, name, 3)
    path = growth.SOURCES[source](tmp_path / "corpus", 8)
    records = list(open_source(source, path).read(0, 99))
    assert [record.error for record in records] == [""] * 8
    codecs = {"IMAGE": 8, "SPEECH": 24000}
    for i, record in enumerate(records):
        (medium,) = record.document.media()
        request = DecodeRequest(record.id, medium.modality, medium.value, codecs[medium.modality.name])
        assert decode(request).value.size and f"document number {i} of" in str(record.document.turns)


def test_what_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert growth.measure_memory(tmp_path, 1, ["build_shards, hf_parquet"]) == {"build_shards, hf_parquet": None}


def test_a_failing_command_is_told(tmp_path, monkeypatch):
    def fail(module, arguments):
        raise CommandFailed("it fell")

    monkeypatch.setattr(growth, "peak_memory", fail)
    with pytest.raises(SystemExit, match="benchmark: it fell"):
        benchmark.main(["--only=memory", "--memory_documents=2", f"--output={tmp_path / 'b.json'}"])
