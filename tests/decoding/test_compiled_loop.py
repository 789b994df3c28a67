"""The compiled loop, read: one cache updated in place, no weights copied or widened at each step."""

import jax
import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.decoding.grammar import class_table
from ar_omni_jax.decoding.rows import empty_rows, empty_settings, programs
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.decode_weights import make_decode_weights, tile_weights, transpose_weights
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.vocabulary import compact_vocabulary
from tests.decoding.hlo import written_arrays

VOCABULARY = compact_vocabulary(text=300, image=8, speech=12, image_grid=(2, 3), multiple=128)
CONFIG = TransformerConfig(
    vocab_size=VOCABULARY.size,
    num_layers=3,
    d_model=512,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    d_ff=1024,
    max_length=512,
    dtype="float32",
)
ROWS = 2
SMALLEST_MATRIX = CONFIG.d_model**2  # elements
CACHE_SHAPE = (ROWS, CONFIG.num_kv_heads, CONFIG.max_length, CONFIG.head_dim)  # of one layer's keys: 2 MiB
KEYS_BYTES = 4 * int(np.prod(CACHE_SHAPE))
IN_PLACE = ("dynamic-update-slice", "scatter", "while", "conditional")


@pytest.fixture(scope="module", params=["float32", "int8", "tiled", "transposed"])
def chunk(request):
    """(weight type, compiled loop, its rows)."""
    form = {"tiled": tile_weights, "transposed": transpose_weights}.get(request.param)  # as lanes on a CPU have them
    made, config = make_decode_weights(Transformer(CONFIG, rngs=nnx.Rngs(0)), "float32" if form else request.param)
    made = form(made) if form else made
    rows = empty_rows(config, class_table(VOCABULARY), ROWS, CONFIG.max_length)
    given = (made, rows, np.ones(ROWS, bool), np.int32(4), np.bool_(False))
    loop = programs(single_thread=request.param == "tiled")[1]
    return request.param, loop.lower(*given, config=config, width=8).compile(), rows


def test_the_cache_is_updated_in_place(chunk):
    _, compiled, rows = chunk
    memory = compiled.memory_analysis()
    cache_bytes = sum(a.nbytes for a in jax.tree.leaves((rows.cache.keys, rows.cache.values)))
    assert memory.alias_size_in_bytes >= cache_bytes  # donated: the result lives where the argument did
    assert memory.temp_size_in_bytes < KEYS_BYTES  # beside the arguments there is no room for a copy of one layer's
    written = [one for one in written_arrays(compiled.as_text(), SMALLEST_MATRIX) if one[2] == CACHE_SHAPE]
    assert {opcode for opcode, *_ in written} <= set(IN_PLACE), written


def test_no_weights_are_copied_or_widened_in_the_loop(chunk):
    _, compiled, _ = chunk
    written = written_arrays(compiled.as_text(), SMALLEST_MATRIX)
    # Nothing else of the size of a matrix is written, in any type: int8 is widened a block at a time.
    assert not [one for one in written if one[2] != CACHE_SHAPE]


def test_the_audit_sees_a_widened_and_a_sliced_matrix():
    def careless(x, stacked):
        return x @ stacked[1].astype(np.float32)

    x, stacked = np.ones((2, 512), np.float32), np.ones((3, 512, 1024), np.int8)
    text = jax.jit(careless).lower(x, stacked).compile().as_text()
    assert written_arrays(text, SMALLEST_MATRIX)


@pytest.mark.parametrize("form", [lambda plain: plain, transpose_weights], ids=["plain", "transposed"])
def test_prompts_are_read_without_logits_and_into_the_cache_that_is_there(form):
    made, config = make_decode_weights(Transformer(CONFIG, rngs=nnx.Rngs(0)), "float32")
    made = form(made)
    rows = empty_rows(config, class_table(VOCABULARY), ROWS, CONFIG.max_length)
    settings = jax.tree.map(lambda a: np.asarray(a)[0], empty_settings(ROWS))
    zero = np.int32(0)
    given = (made, rows, zero, np.zeros(64, np.int32), np.int32(40), zero, settings, zero, zero)
    compiled = programs()[0].lower(*given, config=config).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 6 * KEYS_BYTES and memory.temp_size_in_bytes < 6 * KEYS_BYTES
    wide = [one for one in written_arrays(compiled.as_text(), 1) if one[1] == "f32" and VOCABULARY.size in one[2]]
    assert not wide
    matrices = {leaf.shape for leaf in jax.tree.leaves(made.layers) if leaf.ndim == 2}
    matrices |= {shape[::-1] for shape in matrices}
    assert not [one for one in written_arrays(compiled.as_text(), SMALLEST_MATRIX) if one[2] in matrices]
