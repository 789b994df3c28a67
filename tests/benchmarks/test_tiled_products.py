"""The benchmark of products in tiles: what it runs, what it refuses, and that forms which differ are no comparison."""

import json

import jax.numpy as jnp
import pytest

from ar_omni_jax.benchmarks import tiled_products as bench
from ar_omni_jax.model.tiled import TiledMatrix, tile


def test_a_small_run_has_a_line_for_every_number_of_rows(tmp_path, capsys):
    output = tmp_path / "record.json"
    assert bench.main(["--model=tiny", "--rows=2,4", "--repeats=2", f"--output={output}"]) == 0
    record = json.loads(output.read_text())
    assert [row["rows"] for row in record["rows"]] == [2, 4]
    assert all(row["whole"] > 0 and row["tiled"] > 0 for row in record["rows"])
    assert record["machine"]["cores"] >= 1 and "rows" in capsys.readouterr().out


def test_all_matrices_are_multiplied_in_both_forms():
    made, _ = bench.make_decode_weights(bench.random_subject("tiny", dtype="float32").model, "float32")
    whole, tiled = bench.matrices(made), bench.matrices(bench.tile_weights(made))
    assert [m.shape for m in whole] == [m.shape for m in tiled] and len(whole) == 4 * 2 + 1
    assert all(isinstance(m, TiledMatrix) for m in tiled)


def test_forms_that_differ_are_an_error():
    w = jnp.eye(16)
    with pytest.raises(RuntimeError, match="2 rows: the forms differ by"):
        bench.compare(2, {"whole": [w], "tiled": [tile(-w)]}, repeats=1)


@pytest.mark.parametrize("wrong", ["--rows=two", "--rows=0", "--repeats=0", "--model=7b"])
def test_words_without_a_meaning_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main([wrong])
    assert ended.value.code == 2 and wrong.split("=")[0] in capsys.readouterr().err
