"""The benchmark of the loss's memory: both ways compute the same, and a chunk of logits takes less than all of them."""

import json
import sys

import jax
import numpy as np
import pytest

from ar_omni_jax.benchmarks import cross_entropy_memory as benchmark
from ar_omni_jax.benchmarks.resident import added_by

TINY = benchmark.SHAPES["tiny"]


def test_both_ways_have_the_same_loss_and_gradients():
    inputs = benchmark.inputs_of(TINY)
    whole, chunked = (jax.jit(benchmark.losses_of(way, TINY))(*inputs) for way in benchmark.WAYS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), whole, chunked)
    assert 0.9 * np.log(TINY.vocabulary) < whole[0] < 1.3 * np.log(TINY.vocabulary)


def test_chunks_take_less_memory_by_the_compiler():
    shape = benchmark.dataclasses.replace(TINY, length=512, vocabulary=2048)
    logits = shape.rows * shape.length * shape.vocabulary * 4
    found = {way: benchmark.measure(way, shape)["compiled_bytes"] for way in benchmark.WAYS}
    assert found["whole"] >= logits
    assert found["chunked"] < logits / 4


def test_the_command_compares_and_writes_its_record(tmp_path, capsys):
    path = tmp_path / "record.json"
    assert benchmark.main(["--shapes=tiny", "--rows=1", f"--output={path}"]) == 0
    row = json.loads(path.read_text())["shapes"]["tiny"]
    assert row["rows"] == 1 and row["chunk"] == TINY.chunk
    for way, found in row["ways"].items():
        assert found["seconds"] > 0 and found["compiled_bytes"] > 0, way
    assert "tiny: 1 rows of 64 tokens, width 16, vocabulary 512" in capsys.readouterr().out


def test_ways_that_differ_end_the_comparison(monkeypatch, capsys):
    row = {"compiled_bytes": 1, "resident_bytes": None, "seconds": [1.0], "compile_seconds": 1.0}
    agree = {"whole": [8.0, 1.0, 2.0], "chunked": [8.0, 1.0, 2.1]}
    monkeypatch.setattr(benchmark, "_child", lambda name, way, shape: row | {"agree": agree[way]})
    assert benchmark.main(["--shapes=tiny"]) == 1
    assert "tiny: loss and norms of the gradients differ" in capsys.readouterr().err


def test_a_process_without_proc_has_no_resident_memory():
    row = {"compiled_bytes": 1 << 20, "resident_bytes": None, "seconds": [1.0], "compile_seconds": 1.0, "agree": [1.0]}
    found = benchmark.dataclasses.asdict(TINY) | {"ways": {"whole": benchmark._summary([row])}}
    machine = {"processor": "P", "cores": 2, "load": 0.5, "jax": "1"}
    assert benchmark.table({"machine": machine, "shapes": {"tiny": found}}).splitlines()[-1].split()[1:3] == ["1", "?"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_resident_memory_of_work_that_gives_it_back():
    large = added_by(lambda: np.ones(64 << 20, np.uint8).sum())
    small = added_by(lambda: np.ones(1 << 20, np.uint8).sum())
    assert 60 << 20 < large < 96 << 20 and small < 16 << 20


def test_unknown_shapes_and_sizes_are_told(capsys):
    for command, message in ((["--shapes=toy,moon"], "the shapes are tiny, toy, 7b"), (["--chunk=0"], "at least 1")):
        with pytest.raises(SystemExit):
            benchmark.parse_arguments(command)
        assert message in capsys.readouterr().err
