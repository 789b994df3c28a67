"""What is advised when a step does not fit."""

import jax
import pytest

from ar_omni_jax.compile_check import advice
from ar_omni_jax.compile_check.advice import Advice, advise, describe, saved_per_token
from ar_omni_jax.compile_check.memory import Memory
from ar_omni_jax.compile_check.program import abstract_trainer
from ar_omni_jax.config import load_config
from ar_omni_jax.model.config import chameleon_7b
from ar_omni_jax.parallel.mesh import make_mesh

GIB = 2**30
MEMORY = Memory(parameters=4 * GIB, moments=8 * GIB, batch=1, frozen=0, other=0, output=0, temporaries=9, code=0)


def make(*settings: tuple[str, str]):
    config = load_config("configs/pretrain_7b.py", [("model.num_layers", "2"), *settings])
    return config, abstract_trainer(config, make_mesh(config.mesh.to_dict(), jax.devices()))[0]


def advised(*settings: tuple[str, str]) -> dict[str, int]:
    return {each.change: each.saves for each in advise(*make(*settings), MEMORY)}


def test_what_a_block_keeps_of_a_token():
    model = chameleon_7b()  # bfloat16: two bytes
    full = 2 * 4096
    attention = full + 2 * (4 * 4096 + 4096)
    assert saved_per_token(model, "full") == full
    assert saved_per_token(model, "save_attention") == attention
    assert saved_per_token(model, "zero_recompute") == attention + 2 * (2 * 11008 + 4096)


def test_policies_below_the_current_one_and_what_they_save():
    found = advised(("model.remat", "zero_recompute"), ("data.batch_size", "16"))
    tokens = 2 * 1300  # two rows a device of eight
    model = chameleon_7b(num_layers=2)
    saves = saved_per_token(model, "zero_recompute") - saved_per_token(model, "full")
    assert found["--config.model.remat=full"] == saves * tokens * 2
    assert "--config.model.remat=none" not in found
    assert found["--config.optimizer.moment_dtype=bfloat16"] == 4 * GIB
    assert found["--config.data.batch_size=8"] == saved_per_token(model, "zero_recompute") * tokens
    assert found["--config.loss.chunk=512"] == (2048 - 512) * 65536 * 10


def test_replicas_can_share_what_they_all_hold():
    found = advised(("mesh.data", "2"), ("mesh.fsdp", "4"), ("data.batch_size", "8"))
    state = 2 * 4 * GIB + 8 * GIB
    assert found["--config.mesh.data=1 --config.mesh.fsdp=8"] == state // 2


def test_replicas_of_slices_stay_apart(monkeypatch):
    """Only data crosses slices: one replica in each is the least."""
    monkeypatch.setattr(advice, "slice_count", lambda devices: 2)
    found = advised(("mesh.data", "4"), ("mesh.fsdp", "2"), ("data.batch_size", "8"))
    assert "--config.mesh.data=2 --config.mesh.fsdp=4" in found
    assert not [change for change in advised(("mesh.data", "2"), ("mesh.fsdp", "4")) if "mesh.data" in change]


@pytest.mark.parametrize("batch, accumulate", [(24, 1), (96, 4), (40, 1), (128, 4)])
def test_what_is_advised_can_be_done(batch, accumulate):
    given = ("data.batch_size", str(batch)), ("optimizer.accumulate", str(accumulate))
    tokens, found = batch // 8 // accumulate * 1300, advised(*given)
    assert any(change.startswith("--config.data.batch_size=") for change in found)
    for change, saves in found.items():
        words = [word.removeprefix("--config.").split("=") for word in change.split() if word.startswith("--config.")]
        config, trainer = make(*given, *((name, value) for name, value in words))
        trainer.check_batch(config.data.batch_size, config.data.length)
        if words[0][0] == "data.batch_size":
            rows = config.data.batch_size // 8 // accumulate
            assert saves == 2 * saved_per_token(trainer.model_config, "full") * (tokens - rows * 1300)


def test_what_is_used_already_is_not_advised():
    tight = (("model.remat", "full"), ("data.batch_size", "8"), ("optimizer.moment_dtype", "bfloat16"))
    assert advised(*tight, ("loss.chunk", "512")) == {}


def test_lines_say_what_is_enough():
    lines = describe([Advice("--config.a=1", 3 * GIB), Advice("--config.b=2", GIB)], 2 * GIB)
    assert "a=1: saves about 3.00 GiB, enough" in lines[0] and "not enough alone" in lines[1] and len(lines) == 2
    assert "all of it together is not enough" in describe([Advice("--config.b=2", GIB)], 2 * GIB)[-1]
    assert "more devices" in describe([], 1)[0]
    policies = [Advice("--config.model.remat=save_attention", 2 * GIB), Advice("--config.model.remat=full", 3 * GIB)]
    assert "all of it together is not enough" in describe(policies, 4 * GIB)[-1]  # only one of them can be had
