"""What the compiled step sends between devices and keeps in memory, read from its program.

Every dimension has a size of its own, and a device's share of the activations is larger than any weight, so that a
shape says what an array is.
"""

import numpy as np
import pytest

from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.training.perceptual import FrozenImageDecoder
from ar_omni_jax.training.step import Trainer
from ar_omni_jax.vocabulary import compact_vocabulary
from tests.parallel.hlo_audit import collectives, instructions
from tests.training.test_step import features

VOCABULARY = compact_vocabulary(80, 40, 30, (2, 2), multiple=16)
V, N, D, H, G, K, F = VOCABULARY.size, 3, 40, 4, 2, 6, 56
ROWS, LENGTH, CHUNK = 32, 48, 16
LAYER = {"wq": (D, H, K), "wk": (D, G, K), "wo": (H, K, D), "w_up": (D, F), "w_down": (F, D)}


def lowered(mesh: dict, **model):
    config = TransformerConfig(V, N, D, H, G, K, F, dtype="float32", attention="blocked", **model)
    # At a decoder's depth, the perceptual loss picks whole images out of the split hidden states.
    decoder = FrozenImageDecoder(np.zeros((40, 5), np.float32), features, {"a": np.zeros((5, 6), np.float32)}, ("mid",))
    loss = {"chunk": CHUNK, "z_loss": 1e-4, "perceptual_weight": 0.1, "perceptual_depth": "mid"}
    trainer = Trainer(config, loss, {"peak_lr": 1e-3}, VOCABULARY, make_mesh(mesh), decoder, total_steps=4)
    return trainer.lower(ROWS, LENGTH)


@pytest.fixture(scope="module")
def fsdp():
    return lowered({"fsdp": 8}, remat="full").compile().as_text()


@pytest.fixture(scope="module")
def everything():
    return lowered({"fsdp": 2, "sequence": 2, "tensor": 2}, remat="full").compile().as_text()


def without_ones(shape):
    return tuple(n for n in shape if n > 1)


def gathered(text):
    return {without_ones(c.shape) for c in collectives(text) if c.kind == "all-gather"}


def test_the_sizes_tell_arrays_apart():
    activations = ROWS // 8 * LENGTH * D
    assert activations > D * V > max(np.prod(shape) for shape in LAYER.values())
    assert len({V, D, F, H, G, K, ROWS, LENGTH, CHUNK}) == 9


def test_fsdp_gathers_each_weight_and_scatters_or_sums_its_gradient(fsdp):
    assert set(LAYER.values()) <= gathered(fsdp)
    sums = [c for c in collectives(fsdp) if c.kind in ("reduce-scatter", "all-reduce")]
    summed = {tuple(sorted(without_ones(c.shape))) for c in sums}  # XLA chooses the order of the axes
    for name, shape in LAYER.items():
        split = tuple(n // 8 if n == D else n for n in shape)
        assert summed & {tuple(sorted(shape)), tuple(sorted(split))}, name


def test_fsdp_moves_no_activations(fsdp):
    """The largest thing that is gathered or summed is the output matrix. The embedding's rows alone change hands, each
    once there and (its gradient) once back."""
    moved = [c for c in collectives(fsdp) if c.kind != "all-to-all"]
    assert max(c.size for c in moved) == D * V
    rows = ROWS // 8 * LENGTH * D
    exchanged = [c for c in collectives(fsdp) if c.kind == "all-to-all"]
    assert exchanged and sum(c.size for c in exchanged) <= 2 * rows


@pytest.mark.parametrize("text", ["fsdp", "everything"])
def test_the_embedding_table_stays_where_it_is(text, request):
    text = request.getfixturevalue(text)
    assert not [c for c in collectives(text) if c.kind == "all-gather" and without_ones(c.shape)[:1] == (V,)]
    assert (V, D) not in {shape for _, _, shape in instructions(text)}


def test_the_output_matrix_is_gathered_once_and_its_gradient_scattered_once(fsdp):
    of_matrix = [c for c in collectives(fsdp) if set(without_ones(c.shape)) in ({D, V}, {D // 8, V})]
    gathers = [c for c in of_matrix if c.kind == "all-gather"]
    sums = [c for c in of_matrix if c.kind in ("reduce-scatter", "all-reduce") and c.size == D // 8 * V]
    assert len(gathers) == 1
    # Its own gradient; the embedding's is (V, D / 8) and needs none: every device has all ids of its columns.
    assert [c.shape for c in sums] == [(D // 8, V)]


@pytest.mark.parametrize("text", ["fsdp", "everything"])
def test_no_logits_of_more_than_a_chunk(text, request):
    """[B, L, V] exists nowhere, on no device, in no layout: no array with the vocabulary has more positions than a
    chunk (rounded up to one position of each row)."""
    vocabulary = {V, V // 2}
    most = max(CHUNK, ROWS // 2) * V
    wide = [s for _, _, s in instructions(request.getfixturevalue(text)) if len(s) >= 3 and vocabulary & set(s)]
    assert wide and max(np.prod(shape) for shape in wide) <= most


def test_split_rows_gather_keys_and_values_only(everything):
    """Context parallelism gathers a layer's keys, values and segment ids along the row; no array of the width of the
    residual stream or of the queries' heads."""
    own = ROWS // 2
    along_rows = {s for s in gathered(everything) if own in s and LENGTH in s}
    assert (own, LENGTH, K) in along_rows  # one key head is left of two
    assert not [s for s in along_rows if D in s or D // 2 in s]


def test_all_remat_policies_keep_no_gathered_weights():
    """What the backward pass is given: stacks of split weights, never of whole ones."""
    for policy in ("none", "zero_recompute"):
        text = lowered({"fsdp": 8}, remat=policy).compile().as_text()
        stacked = {without_ones(s) for _, _, s in instructions(text) if s[:1] == (N,)}
        assert not stacked & {(N, *shape) for shape in LAYER.values()}, policy
        assert (N, D // 8, F) in stacked
