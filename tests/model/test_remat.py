"""What the backward pass runs again, counted in the programs themselves; no accelerator is needed to lower for one.

A layer's forward pass multiplies activations by seven matrices (q, k, v; out; gate, up; down), its backward pass needs
two products for each: 14, or 8 where q, k, v are counted as one product and gate, up as one. "No recompute" means
these and not one more, and the attention's forward kernel once.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ar_omni_jax.model.config import REMAT_POLICIES
from ar_omni_jax.model.layout import one_device
from ar_omni_jax.model.transformer import abstract_transformer
from tests.model.helpers import make_model, packed_batch, tiny_config

MATRICES = 7
FORWARD, BACKWARD = MATRICES, 2 * MATRICES
# Products with weights that a policy runs again. Swin-norm needs the outputs of `out` and `down`, so nothing of the
# seven may be missing when only a block's input is kept, and gate, up and down when attention alone is.
AGAIN = {"none": 0, "full": 7, "save_attention": 3, "zero_recompute": 0}


def gradient(config, platform):
    """jit(gradient of a loss), a model of ShapeDtypeStructs for it, for one device of a platform."""
    layout = one_device(config, platform)
    graph, state = nnx.split(abstract_transformer(config))
    batch = [jnp.asarray(x) for x in packed_batch(config.vocab_size)]

    def loss(state):
        hidden = nnx.merge(graph, state)(*batch, layout)
        return (hidden.astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.grad(loss)), state


def lowered_for(config, platform) -> str:
    function, state = gradient(config, platform)
    return function.trace(state).lower(lowering_platforms=(platform,)).as_text()


def products(text: str) -> int:
    return text.count("stablehlo.dot_general")


@pytest.mark.parametrize("policy", REMAT_POLICIES)
def test_products_and_attention_kernels_on_tpu(policy):
    """Splash's forward kernel runs once where its residuals are kept; its two backward kernels once always.

    One product more, between them: the sum over a head's width of output times gradient.
    """
    config = tiny_config(remat=policy, attention="splash", dtype="bfloat16", d_model=128, head_dim=128)
    text = lowered_for(config, "tpu")
    kernels = re.findall(r"kernel_name = \"(splash_mha_\w+?)_segmented", text)
    assert kernels.count("splash_mha_fwd") == (2 if policy == "full" else 1)
    assert kernels.count("splash_mha_dq") == kernels.count("splash_mha_dkv") == 1
    assert products(text) == FORWARD + BACKWARD + AGAIN[policy] + 1


@pytest.mark.parametrize("policy", REMAT_POLICIES)
def test_products_and_attention_kernels_on_gpu(policy, monkeypatch):
    """cuDNN's residual has no name; the policies know its primitive."""
    # The one thing that lowering for a GPU asks of an installed cuDNN.
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    config = tiny_config(remat=policy, attention="cudnn", dtype="bfloat16", packed_rows=False)
    text = lowered_for(config, "cuda")
    assert text.count("@__cudnn$fmhaSoftmax(") == (2 if policy == "full" else 1)
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert products(text) == FORWARD + BACKWARD + AGAIN[policy]


def compiled_products(config) -> int:
    """Matrix products in the compiled program, after XLA has removed what is computed twice."""
    function, state = gradient(config, "cpu")
    text = function.lower(state).compile().as_text()
    return len(re.findall(r" = \S+ (?:dot|custom-call)\(", text))


@pytest.mark.parametrize("policy", ["full", "zero_recompute"])
def test_compiled_products(policy):
    """The loop bodies' products as compiled, the attention's two (four backward) among them."""
    expected = {"zero_recompute": 3 * 9, "full": 4 * 9}[policy]
    assert compiled_products(tiny_config(remat=policy)) == expected


def test_layers_that_are_written_out_recompute_as_well():
    """XLA merges equal work within one program: without a barrier, recomputing would be undone."""
    config = tiny_config(remat="full", scan_layers=False)
    layers = config.num_layers
    assert compiled_products(config) == 4 * 9 * layers
    kept = compiled_products(dataclasses.replace(config, remat="none"))
    assert kept == 3 * 9 * layers


def test_memory_falls_with_what_is_recomputed():
    def temporary(policy):
        config = tiny_config(remat=policy, num_layers=8, attention="rowwise")
        graph, state = nnx.split(make_model(config))
        batch = packed_batch(config.vocab_size, 64)
        function = jax.jit(jax.grad(lambda s: nnx.merge(graph, s)(*batch).sum()))
        return function.lower(state).compile().memory_analysis().temp_size_in_bytes

    sizes = [temporary(policy) for policy in ("full", "save_attention", "zero_recompute", "none")]
    assert sizes == sorted(sizes) and sizes[0] < 0.5 * sizes[-1]
