"""Memory by kind: against arithmetic by hand, and against what a compiler says of the same step."""

import jax
import pytest

from ar_omni_jax.compile_check.memory import Memory, arguments_of, from_analysis, from_refusal
from ar_omni_jax.compile_check.program import abstract_trainer
from ar_omni_jax.compile_check.targets import CHIPS, GIB
from ar_omni_jax.config import load_config
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.training.losses import LossError

CONFIG = "configs/pretrain_7b.py"
TINY = {
    "model.num_layers": 2,
    "model.d_model": 64,
    "model.num_heads": 4,
    "model.num_kv_heads": 4,
    "model.head_dim": 16,
    "model.d_ff": 128,
    "data.length": 32,
    "data.batch_size": 8,
    "mesh.data": 2,
    "mesh.fsdp": 4,
    "model.attention": "reference",
}
LAYERS, D, HEADS, F, V, CODES = 2, 64, 64, 128, 65536, 256


def tiny(**changes):
    settings = TINY | changes
    return load_config(CONFIG, [(name, str(value)) for name, value in settings.items()])


def accounts(config):
    trainer, _ = abstract_trainer(config, make_mesh(config.mesh.to_dict()))
    batch = trainer.abstract_batch(config.data.batch_size, config.data.length)
    replicated = trainer.state_sharding.step
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), trainer.frozen)
    return trainer, arguments_of(trainer.abstract_state(), batch, frozen)


def test_parameters_moments_and_batch_of_a_device_are_those_of_a_hand_computation():
    _, found = accounts(tiny())
    # fsdp = 4 splits all that has the residual stream's width; what a norm has is on every device.
    split = 2 * V * D + LAYERS * (4 * D * HEADS + 3 * D * F) + D * CODES
    whole = LAYERS * (2 * D + 4 * 16) + D + CODES
    assert found["parameters"] == 4 * (split // 4 + whole)
    counters = found["moments"] - 2 * found["parameters"]
    assert 0 <= counters <= 16  # optax counts its steps
    assert found["batch"] == 8 // 8 * 32 * (5 * 4 + 1)  # five arrays of four bytes, the class of one
    assert found["frozen"] == 8192 * CODES * 4  # the published codebook, on every device


def test_moments_in_bfloat16_are_half_of_that():
    _, full = accounts(tiny())
    _, half = accounts(tiny(**{"optimizer.moment_dtype": "bfloat16"}))
    assert half["parameters"] == full["parameters"]
    assert abs(half["moments"] - full["parameters"]) <= 16


def test_the_compiler_counts_the_same_arguments():
    config = tiny()
    trainer, known = accounts(config)
    analysis = trainer.lower(config.data.batch_size, config.data.length).compile().memory_analysis()
    memory = from_analysis(known, analysis)
    assert memory.arguments == analysis.argument_size_in_bytes
    assert known["counters"] == 12 and 0 <= memory.other - known["counters"] <= 4096
    assert memory.output < 4096  # the new state takes the old one's place
    assert memory.total == memory.arguments + memory.output + memory.temporaries + memory.code


def test_a_depth_that_needs_the_tokenizer_says_so():
    config = tiny(**{"loss.perceptual_depth": "middle"})
    with pytest.raises(LossError, match="data.tokenizers"):
        abstract_trainer(config, make_mesh(config.mesh.to_dict()))


REFUSAL = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory in memory space "
    "hbm. Used 21.50G of 15.75G hbm. Exceeded hbm capacity by 5.75G.\n\nTotal hbm usage >= 21.77G:\n"
)
KNOWN = {"parameters": 4 * GIB, "moments": 8 * GIB, "batch": 100, "frozen": 0, "counters": 12}


def test_a_refusal_is_read_as_memory():
    memory = from_refusal(KNOWN, REFUSAL)
    assert memory.total == int(21.5 * GIB) and not memory.compiled
    assert memory.temporaries == int(21.5 * GIB) - 12 * GIB - 112
    chip = CHIPS["v5e"]
    assert memory.over(chip) == int(21.5 * GIB) - (chip.hbm_bytes - chip.headroom_bytes)
    assert from_refusal(KNOWN, "INTERNAL: Mosaic failed to compile") is None


def test_the_compilers_other_refusals():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (40.05G) exceeds "
        "available HBM (15.75G)."
    )
    memory = from_refusal(KNOWN, message)
    assert memory.temporaries == int(40.05 * GIB) and memory.total == memory.temporaries + 12 * GIB + 112
    early = "Aborting compilation early: unlikely to have enough memory. Requires 1.5T, has 14.49G available."
    assert from_refusal(KNOWN, early).total == int(1.5 * 2**40)


def test_over_is_zero_up_to_the_limit_and_counts_bytes_above():
    chip = CHIPS["v6e"]
    limit = chip.hbm_bytes - chip.headroom_bytes
    assert Memory(limit, 0, 0, 0, 0, 0, 0, 0).over(chip) == 0
    assert Memory(limit, 0, 0, 0, 0, 0, 7, 0).over(chip) == 7
