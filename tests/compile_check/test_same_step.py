"""The step that is checked is the step that is trained: both are put together from the same settings in one way."""

import types

import jax
import pytest

from ar_omni_jax import main
from ar_omni_jax.compile_check import program, report
from ar_omni_jax.config import load_config
from ar_omni_jax.parallel.mesh import make_mesh


class Assembled(Exception):
    """What a Trainer was asked for."""


def asked(*arguments, **options):
    raise Assembled(arguments, options)


def test_the_trainer_is_asked_for_the_same_things(monkeypatch, tmp_path):
    settings = [("model.num_layers", "2"), ("loss.perceptual_weight", "0"), ("optimizer.accumulate", "2")]
    settings += [("mesh.data", "2"), ("optimizer.moment_dtype", "bfloat16")]
    config = load_config("configs/pretrain_7b.py", settings)
    monkeypatch.setattr(main, "Trainer", asked)
    monkeypatch.setattr(main.prepare, "packed_data", lambda *_: tmp_path)
    monkeypatch.setattr(main, "check_data", lambda *_: types.SimpleNamespace(tokenizers={}))
    with pytest.raises(Assembled) as training:
        main.assemble(config, tmp_path)
    with pytest.raises(Assembled) as checked:
        program.abstract_trainer(config, make_mesh(config.mesh.to_dict(), jax.devices()))
    assert training.value.args == checked.value.args


def test_the_attention_is_told_by_the_name_that_auto_stands_for():
    """Compiled for GPUs with packed rows it is blocked, which wants to be known."""
    config = load_config("configs/pretrain_7b.py", [("model.num_layers", "2"), ("mesh.sequence", "2")])
    trainer, _ = program.abstract_trainer(config, make_mesh(config.mesh.to_dict(), jax.devices()))
    assert config.model.attention == "auto" and report.settings_of(config, trainer)["model.attention"] == "blocked"
