"""The command: layouts recognised, warnings, a kill in the middle, and outputs that training and answering accept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ar_omni_jax import convert
from ar_omni_jax.checkpoint import Checkpoints, Description, load_for_inference
from ar_omni_jax.interop import bench
from ar_omni_jax.interop.output import staging_folder
from ar_omni_jax.model.cache import empty_cache
from ar_omni_jax.predictor import Predictor
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.training.loop import initialize_from
from ar_omni_jax.training.state import TrainState
from tests.interop import backbones

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    ("layout", "evidence"),
    [
        ("hf", "self_attn.q_norm.weight has shape [4, 6], rank 2"),
        ("vendored", "self_attn.q_norm.weight has shape [6], rank 1"),
        ("meta", "it holds consolidated.pth"),
        ("orbax", "it holds the checkpoint 7"),
    ],
)
def test_the_layout_is_recognised_and_told(tmp_path, capsys, layout, evidence):
    pytest.importorskip("torch")
    path = backbones.save(backbones.make(), layout, tmp_path / "in")
    assert backbones.run(path, tmp_path / "out", "hf") == 0
    out = capsys.readouterr().out
    assert f"input: {layout} (" in out and evidence in out
    assert "swin-norm" in out and f"wrote {tmp_path / 'out'}" in out


def test_placement_is_recorded_and_a_change_is_warned_of(tmp_path, capsys):
    path = backbones.save(backbones.make(norm_placement="pre"), "hf", tmp_path / "hf")
    assert json.loads((path / "config.json").read_text())["swin_norm"] is False
    assert backbones.run(path, tmp_path / "pre", "orbax") == 0
    assert "WARNING" not in capsys.readouterr().err
    assert load_for_inference(tmp_path / "pre").model_config.norm_placement == "pre"
    assert backbones.run(path, tmp_path / "swin", "orbax", norm_placement="swin") == 0
    assert "WARNING: pre-norm weights are declared swin-norm" in capsys.readouterr().err
    assert load_for_inference(tmp_path / "swin").model_config.norm_placement == "swin"


def test_a_config_that_does_not_say_the_placement_is_told(tmp_path, capsys):
    path = backbones.save(backbones.make(norm_placement="pre"), "hf", tmp_path / "hf")
    config = json.loads((path / "config.json").read_text())
    del config["swin_norm"], config["rope_theta"]
    (path / "config.json").write_text(json.dumps(config))
    assert backbones.run(path, tmp_path / "out", "orbax") == 0
    assert "leaves out swin_norm = false (pre-norm), rope_theta = 10000" in capsys.readouterr().out


def test_training_starts_from_a_converted_model(tmp_path, caplog):
    """`--config.train.init_from`, with the warning that a pre-norm base in a swin-norm run deserves."""
    base = backbones.make("bfloat16", norm_placement="pre")
    path = backbones.save(base, "hf", tmp_path / "hf")
    assert backbones.run(path, tmp_path / "base", "orbax") == 0
    trained = load_for_inference(tmp_path / "base")
    zeros = {"model": _zeros(trained.params), "projection": {"w": jnp.full((2, 2), 3.0)}}
    state = TrainState(jnp.int32(0), zeros, {}, jnp.int32(0), jnp.int32(0))
    started = initialize_from(state, str(tmp_path / "base"), backbones.VOCABULARY, "swin")
    assert "holds pre-norm weights, this run is swin-norm" in caplog.text
    assert started.params["model"]["embedding"].dtype == jnp.float32
    np.testing.assert_array_equal(started.params["model"]["embedding"], base.get("embedding").astype(np.float32))
    np.testing.assert_array_equal(started.params["model"]["blocks"]["w_up"][1].T, base.get("layers.1.w_up"))
    assert float(started.params["projection"]["w"][0, 0]) == 3.0
    caplog.clear()
    initialize_from(state, str(tmp_path / "base"), backbones.VOCABULARY, "pre")
    assert "this run is" not in caplog.text


def _zeros(params):
    from flax import nnx

    return nnx.to_pure_dict(nnx.map_state(lambda _, v: v.replace(jnp.zeros(v.shape, jnp.float32)), params))


def test_a_converted_model_answers(tmp_path):
    """`generate --checkpoint` on an export that came back: tokenizers, vocabulary and templates came with it."""
    vocabulary = load_tokenizers("toyworld", need=()).vocabulary
    base = backbones.make(vocab_size=vocabulary.size, max_length=512).replace(vocabulary=vocabulary)
    path = backbones.save(base, "hf", tmp_path / "hf")
    assert backbones.run(path, tmp_path / "run", "orbax") == 0
    predictor = Predictor.load(tmp_path / "run")
    assert (predictor.template, predictor.step) == ("paper", 7)
    assert predictor.tokenizers.vocabulary == vocabulary
    np.testing.assert_array_equal(predictor.model.embedding[...], base.get("embedding"))
    assert empty_cache(predictor.model.config, 1, 8).capacity == 8


def test_the_projection_and_the_optimizer_stay_behind_and_it_is_said(tmp_path, capsys):
    backbones.save(backbones.make(), "orbax", tmp_path / "model")
    trained = load_for_inference(tmp_path / "model")
    from flax import nnx

    state = {
        "params": {"model": nnx.to_pure_dict(trained.params), "projection": {"weight": jnp.zeros((24, 8))}},
        "opt_state": {"mu": jnp.zeros(3)},
    }
    vocabulary = trained.vocabulary
    description = Description(9, 9, trained.config, vocabulary.to_dict(), vocabulary.fingerprint)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(state, description)
    checkpoints.close()
    assert backbones.run(tmp_path / "run", tmp_path / "hf", "hf") == 0
    out = capsys.readouterr().out
    assert "perceptual projection params.projection.weight [24, 8] serves training alone: not exported" in out
    assert "1 arrays of the optimizer and counters: not exported" in out


KILLED = """
import os, signal, sys
from ar_omni_jax import convert
from ar_omni_jax.interop import output
adds = [0]
def add(self, size):
    adds[0] += 1
    if adds[0] == 9:
        os.kill(os.getpid(), signal.SIGKILL)
output.Progress.add = add
convert.main(sys.argv[1:])
"""


@pytest.mark.parametrize("target", ["hf", "orbax"])
def test_kill_in_the_middle_then_run_again(tmp_path, target):
    original = backbones.make()
    source = backbones.save(original, "orbax" if target == "hf" else "hf", tmp_path / "in")
    out = tmp_path / "out"
    given = "orbax" if target == "hf" else "hf"
    words = [f"--from={given}", f"--to={target}", f"--input={source}", f"--output={out}"]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], env=ENVIRONMENT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists() and staging_folder(out).is_dir()
    assert backbones.run(source, out, target) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    backbones.assert_same(original, backbones.load(target, out))


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    source = backbones.save(backbones.make(), "hf", tmp_path / "in")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ar_omni_jax.interop.output.Progress.add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        backbones.run(source, tmp_path / "out", "vendored")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch, capsys):
    source = backbones.save(backbones.make(), "hf", tmp_path / "in")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("ar_omni_jax.interop.output.shutil.disk_usage", lambda _: usage)
    assert backbones.run(source, tmp_path / "out", "vendored") == 1
    assert "needs 0.00 GB, its disk has 0.00 GB" in capsys.readouterr().err


def test_the_room_for_the_second_table_is_counted(tmp_path, monkeypatch, capsys):
    base = backbones.make(tie="scaled")
    source = backbones.save(base, "orbax", tmp_path / "in")
    usage = type("Usage", (), {"free": base.size() + 100})
    monkeypatch.setattr("ar_omni_jax.interop.output.shutil.disk_usage", lambda _: usage)
    for target in ("meta", "hf"):
        assert backbones.run(source, tmp_path / "out", target) == 1
        assert "choose another disk" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("orbax", {"model_parallel_size": 2}, "--model_parallel_size means nothing to orbax: it is for meta"),
        ("meta", {"image_tokenizer": "x"}, "--image_tokenizer means nothing to meta: it is for hf"),
        ("vendored", {"step": 7}, "--step means nothing from hf: it is for orbax"),
        ("tokenizer", {"from": "tokenizer", "dtype": "bfloat16"}, "--dtype means nothing to tokenizer"),
    ],
)
def test_an_option_that_would_be_passed_over_is_refused(tmp_path, capsys, target, options, message):
    source = backbones.save(backbones.make(), "hf", tmp_path / "in")
    assert backbones.run(source, tmp_path / "out", target, **options) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_progress_is_shown(tmp_path, capsys, monkeypatch):
    source = backbones.save(backbones.make(), "hf", tmp_path / "in")
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    assert backbones.run(source, tmp_path / "out", "vendored") == 0
    assert "GB, 10 s, about" in capsys.readouterr().err


def test_the_core_and_the_command_run_without_torch(tmp_path):
    """Importing converts nothing into a torch user; safetensors and Orbax need none; a .pth says what it needs."""
    source = backbones.save(backbones.make(), "meta", tmp_path / "meta")
    backbones.save(backbones.make(), "hf", tmp_path / "hf")
    code = f"""
import sys
import ar_omni_jax.main, ar_omni_jax.convert, ar_omni_jax.generate
assert "torch" not in sys.modules and "transformers" not in sys.modules
sys.modules["torch"] = None
for words in ("hf orbax hf 1", "orbax meta 1 2", "orbax vendored 1 3"):
    given, to, source, out = words.split()
    words = ["--from=" + given, "--to=" + to, "--input={tmp_path}/" + source, "--output={tmp_path}/" + out]
    assert ar_omni_jax.convert.main(words) == 0
sys.exit(ar_omni_jax.convert.main(["--from=meta", "--to=hf", "--input={source}", "--output={tmp_path / "out"}"]))
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and 'pip install "ar_omni_jax[torch]"' in done.stderr, done.stderr


def test_the_measurement(tmp_path, capsys):
    ballast = np.ones(2**28)  # 2 GiB of this process's own must not count as the conversion's
    assert bench.main(["--tiny", f"--output={tmp_path}", "--through=orbax"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [c["to"] for c in report["conversions"]] == ["orbax", "hf-from-orbax"]
    assert all(0 < c["peak_gib"] < 2 and c["seconds"] > 0 for c in report["conversions"])
    assert ballast[-1] == 1
    assert report["bit_equal"] and not list(tmp_path.iterdir())


def test_sizes_and_numbers_of_the_command_line(capsys):
    words = ["--to=hf", "--input=a", "--output=b"]
    assert convert.parse_arguments([*words, "--max_shard_size=1.5GB"]).max_shard_size == 1_500_000_000
    for bad in ("--max_shard_size=large", "--model_parallel_size=0", "--to=onnx"):
        with pytest.raises(SystemExit):
            convert.parse_arguments([*words, bad])
    assert "no size" in capsys.readouterr().err
