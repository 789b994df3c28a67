"""The command, with the real compilers where they are installed."""

import json
import os
import subprocess
import sys

import pytest

from ar_omni_jax.compile_check import __main__ as command
from ar_omni_jax.compile_check import commands, environment
from ar_omni_jax.compile_check.targets import find_target
from tests.compile_check.test_device_memory import TINY
from tests.compilers import needs_cuda, needs_libtpu, with_compilers

ARGUMENTS = [f"--config.{name}={value}" for name, value in TINY.items() if not name.startswith("mesh.")]


def run(*arguments: str) -> subprocess.CompletedProcess:
    environ = {name: value for name, value in with_compilers().items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    words = [sys.executable, "-m", "ar_omni_jax.compile_check", "--config=configs/pretrain_7b.py", *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=environ)


def test_an_unknown_target_names_the_nearest(capsys):
    assert command.main(["--config=configs/pretrain_7b.py", "--target=v5p-46"]) == 2
    assert "did you mean v5p-" in capsys.readouterr().err


def test_a_missing_compiler_is_told_with_the_command_that_brings_it(monkeypatch, capsys):
    monkeypatch.setattr(environment, "has_libtpu", lambda: False)
    monkeypatch.setattr(environment, "has_cuda_plugin", lambda: False)
    assert command.main(["--config=configs/pretrain_7b.py", "--target=v5p-64"]) == 2
    assert 'pip install "ar_omni_jax[compile_tpu]"' in capsys.readouterr().err
    assert command.main(["--config=configs/pretrain_7b.py", "--target=h200-1"]) == 2
    assert "pip install --no-deps jax-cuda12-plugin" in capsys.readouterr().err


def test_a_fault_is_no_verdict(monkeypatch, capsys):
    def check(*_):
        raise NotImplementedError("head_dim must be a multiple of 8")

    monkeypatch.setattr(commands, "check", check)
    monkeypatch.setattr(command, "prepare", lambda target: None)
    assert command.main(["--config=configs/pretrain_7b.py", "--target=v5p-64"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and "must be a multiple of 8" in told


def test_the_environment_is_what_the_compilers_need(monkeypatch):
    monkeypatch.setattr(environment, "require_compiler", lambda target: None)
    monkeypatch.setattr(os, "environ", {"XLA_FLAGS": "--xla_foo=1"})
    environment.prepare(find_target("v5e-64"))
    assert os.environ["JAX_PLATFORMS"] == "cpu" and os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
    environment.prepare(find_target("h200-1"))
    environment.prepare(find_target("h200-1"))
    assert os.environ["XLA_FLAGS"] == "--xla_foo=1 --xla_gpu_autotune_level=0"


@pytest.mark.slow
@needs_libtpu
def test_a_tiny_step_for_a_tpu(tmp_path):
    file = tmp_path / "result.json"
    done = run("--target=v5e-8", f"--json={file}", "--config.model.remat=full", *ARGUMENTS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "FITS" in done.stdout and "8 x TPU v5e (v5e:2x4)" in done.stdout
    found = json.loads(file.read_text())
    assert found["fits"] and found["devices"] == 8 and found["mesh"]["fsdp"] == 8
    layers, tokens = 2, 8 * 32
    split = 2 * 65536 * 64 + layers * (4 * 64 * 64 + 3 * 64 * 128) + 64 * 256
    whole = layers * (2 * 64 + 4 * 16) + 64 + 256
    assert found["memory_bytes"]["parameters"] == 4 * (split // 8 + whole)
    gathers = found["collectives"]["all-gather"]
    assert gathers["runs"] >= 2 * layers and gathers["bytes"] > 0  # forward and backward pass
    needed = (split + whole - 65536 * 64 - 64 * 256 - 256) * 6 + 6 * layers * 32 * 64
    assert found["flops"]["formula"] == needed * tokens / 8
    # Every product that is needed, and the recomputed ones; the output matrix alone is most of it.
    assert 0.9 < found["flops"]["products"] / found["flops"]["formula"] < 1.6
    assert found["roofline"]["overlapped"] <= found["roofline"]["serial"]


@pytest.mark.slow
@needs_libtpu
def test_a_step_that_does_not_fit_ends_with_1_and_the_number_of_bytes(tmp_path):
    file = tmp_path / "result.json"
    wide = ("--config.data.batch_size=1024", "--config.model.d_model=32768")
    done = run("--target=v5e-4", f"--json={file}", *ARGUMENTS, *wide)
    assert done.returncode == 1, done.stderr[-2000:]
    found = json.loads(file.read_text())
    assert not found["fits"] and found["over_bytes"] > 2**30
    assert f"DOES NOT FIT: {found['over_bytes']:,} bytes" in done.stdout
    assert "--config.data.batch_size=512: saves about" in done.stdout


@pytest.mark.slow
@needs_cuda
def test_a_tiny_step_for_an_h200(tmp_path):
    file = tmp_path / "result.json"
    done = run("--target=h200-1", f"--json={file}", *ARGUMENTS)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text())
    assert found["fits"] and found["collectives"] == {} and "no collectives" in done.stdout
    state = found["memory_bytes"]["parameters"] + found["memory_bytes"]["moments"]
    assert state == pytest.approx(3 * 4 * (2 * 65536 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128)), rel=0.01)
    assert 0.9 < found["flops"]["products"] / found["flops"]["formula"] < 1.6


@pytest.mark.slow
@needs_libtpu
def test_settings_that_do_not_go_together_are_no_verdict():
    done = run("--target=v5e-8", *ARGUMENTS, "--config.data.batch_size=7")
    assert done.returncode == 2 and "data.batch_size = 7 must be a multiple of 8" in done.stderr
