"""The benchmark of products by form: what it runs, what it refuses, and that forms which differ are no comparison."""

import json

import jax.numpy as jnp
import pytest

from ar_omni_jax.benchmarks import products as bench
from ar_omni_jax.model.tiled import TiledMatrix, tile
from ar_omni_jax.model.transposed import TransposedMatrix


@pytest.mark.parametrize("threads", ["one", "all"])
def test_a_small_run_has_a_line_for_every_number_of_rows(tmp_path, capsys, threads):
    output = tmp_path / "record.json"
    words = ["--model=tiny", "--rows=2,4", "--repeats=2", f"--threads={threads}", f"--output={output}"]
    assert bench.main(words) == 0
    record = json.loads(output.read_text())
    assert [row["rows"] for row in record["rows"]] == [2, 4]
    assert all(row[form] > 0 for row in record["rows"] for form in ("whole", "tiled", "transposed"))
    printed = capsys.readouterr().out
    assert record["machine"]["cores"] >= 1 and "rows" in printed and ("one of" in printed) == (threads == "one")


def test_all_matrices_are_multiplied_in_every_form():
    made, _ = bench.make_decode_weights(bench.random_subject("tiny", dtype="float32").model, "float32")
    whole = bench.matrices(made)
    assert len(whole) == 4 * 2 + 1
    for form, kind in ((bench.tile_weights, TiledMatrix), (bench.transpose_weights, TransposedMatrix)):
        others = bench.matrices(form(made))
        assert [m.shape for m in whole] == [m.shape for m in others] and all(isinstance(m, kind) for m in others)


def test_forms_that_differ_are_an_error():
    w = jnp.eye(16)
    with pytest.raises(RuntimeError, match="2 rows: whole and tiled differ by"):
        bench.compare(2, {"whole": [w], "tiled": [tile(-w)]}, repeats=1)


@pytest.mark.parametrize("wrong", ["--rows=two", "--rows=0", "--repeats=0", "--model=7b"])
def test_words_without_a_meaning_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main([wrong])
    assert ended.value.code == 2 and wrong.split("=")[0] in capsys.readouterr().err
