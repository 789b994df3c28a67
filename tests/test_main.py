"""The training command as people use it: real processes, real data files, real kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_data

from ar_omni_jax import main as main_module
from ar_omni_jax.checkpoint import load_for_inference, steps_in
from ar_omni_jax.files import only_writer
from ar_omni_jax.training.accounting import MACHINE

REPOSITORY = Path(__file__).parents[1]
TIMEOUT = 400  # seconds; a busy machine takes long to start a process
CONFIG = """
from ar_omni_jax.config import base_config

def get_config(arg=""):
    config = base_config()
    config.model.update(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32)
    config.data.update(length=32, batch_size=8)
    config.optimizer.peak_lr = 1e-2
    config.train.update(steps=40, log_every=3, eval_every=12, eval_batches=2, checkpoint_every=10)
    return config
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder with config.py, packed data and tokenizers."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.py").write_text(CONFIG)
    tiny_data.make_packed(folder, tokenizers=None)
    tiny_data.make_tokenizers(folder / "tokenizers")
    return folder


def arguments(tiny, workdir, *more):
    return [
        f"--config={tiny / 'config.py'}",
        f"--workdir={workdir}",
        f"--config.data.path={tiny / 'packed'}",
        f"--config.data.tokenizers={tiny / 'tokenizers'}",
        *more,
    ]


def start(tiny, workdir, *more):
    """The command as a process of its own, on one device."""
    command = [sys.executable, "-m", "ar_omni_jax.main", *arguments(tiny, workdir, *more)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipe)


def run_to_the_end(tiny, workdir, *more):
    process = start(tiny, workdir, *more)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return output


def run_here(tiny, workdir, *more):
    """The command in this process; signal handlers are put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return main_module.main(arguments(tiny, workdir, *more))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def records(workdir, kind="train"):
    path = Path(workdir) / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:  # being written
            continue
    return [r for r in found if r["kind"] == kind]


def learning(workdir, kind="train"):
    """Everything that must not depend on interruptions: all but speed."""
    return [{k: v for k, v in r.items() if not k.startswith(MACHINE)} for r in records(workdir, kind)]


def wait_for_step(process, workdir, step, seconds=TIMEOUT):
    """Returns when a line of `step` or later is written."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if any(r["step"] >= step for r in records(workdir)):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"step {step} was not reached:\n{process.stdout.read()}")


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """The workdir of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    run_to_the_end(tiny, workdir)
    return workdir


def test_trains_to_the_end_and_learns(whole):
    train, validation = records(whole), records(whole, "validation")
    assert [r["step"] for r in train] == [*range(3, 40, 3), 40]
    assert [r["step"] for r in validation] == [12, 24, 36, 40]
    assert steps_in(whole / "checkpoints") == [20, 30, 40]
    last = sum(r["nll/text"] for r in train[-3:]) / 3  # the very last record is of a single batch
    assert last < 0.85 * train[0]["nll/text"]
    for name in ("nll/image", "nll/speech", "nll/marker", "nll_task/asr", "grad_norm", "learning_rate"):
        assert name in train[0]
    assert validation[-1]["nll/text"] < validation[0]["nll/text"]


def test_the_result_serves_inference(whole):
    trained = load_for_inference(whole)
    assert trained.step == 40
    assert trained.vocabulary == tiny_data.VOCABULARY
    assert trained.params["embedding"].shape == (tiny_data.VOCABULARY.size, 16)


def killed_half_way(tiny, folder, tries=4):
    """The workdir of a run killed after step 24. A run that was over before the kill reached it is no proof: again."""
    for attempt in range(tries):
        workdir = folder / str(attempt)
        process = start(tiny, workdir)
        wait_for_step(process, workdir, 24)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if records(workdir)[-1]["step"] < 40:
            return workdir
    raise AssertionError(f"{tries} runs were over before they were killed")


def test_a_killed_run_continues_bitwise(tiny, whole, tmp_path):
    tmp_path = killed_half_way(tiny, tmp_path)
    assert "resuming after step" in run_to_the_end(tiny, tmp_path)
    assert learning(tmp_path) == learning(whole)
    assert learning(tmp_path, "validation") == learning(whole, "validation")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first(tiny, tmp_path, number):
    process = start(tiny, tmp_path)
    wait_for_step(process, tmp_path, 6)
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + number
    assert f"{signal.Signals(number).name}: finishing this step and saving" in output
    assert "run the same command to go on" in output
    saved = steps_in(tmp_path / "checkpoints")[-1]
    assert f"saved step {saved}" in output


def test_a_second_signal_ends_at_once():
    """Raised by the program itself: two signals from outside may reach it as one, or after it has saved."""
    code = """
import os, signal
from ar_omni_jax.training.signals import StopSignal
stop = StopSignal().install()
os.kill(os.getpid(), signal.SIGINT)
assert stop.number == signal.SIGINT
os.kill(os.getpid(), signal.SIGTERM)
print("still here")
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert done.stdout == "SIGINT: finishing this step and saving (again to quit at once)\n"


def test_changed_settings_on_resume_are_told_or_refused(tiny, whole, tmp_path, capsys):
    """Resumes here, on the 8 devices of the test suite, what one device began."""
    shutil.copytree(whole, tmp_path / "run")
    changed = ["--config.optimizer.peak_lr=0.001", "--config.train.eval_every=0"]
    assert run_here(tiny, tmp_path / "run", "--config.train.steps=41", *changed) == 0
    told = capsys.readouterr().out
    assert "config.optimizer.peak_lr: 0.01 in the checkpoint, 0.001 now" in told
    assert "config.train.steps: 40 in the checkpoint, 41 now" in told
    settings = (tmp_path / "run" / "config.json").read_bytes()
    assert run_here(tiny, tmp_path / "run", "--config.model.d_ff=64") == 1
    assert "config.model.d_ff: 32 in the checkpoint, 64 now" in capsys.readouterr().err
    assert run_here(tiny, tmp_path / "run", "--config.optimizer.weight_decay=0.1") == 1
    assert "config.optimizer.weight_decay: 0.0 in the checkpoint, 0.1 now" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_bytes() == settings  # what a refused start had is not the run's


def test_data_that_is_gone_or_shrunk_under_a_resumed_run_is_told(tiny, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    saved = steps_in(tmp_path / "run" / "checkpoints")
    more = ["--config.train.steps=50", f"--config.data.path={tmp_path / 'data' / 'packed'}"]
    assert run_here(tiny, tmp_path / "run", *more) == 1
    assert f"no packed data in {tmp_path / 'data' / 'packed'}" in capsys.readouterr().err
    tiny_data.make_packed(tmp_path / "data", documents=20, tokenizers=None)
    assert run_here(tiny, tmp_path / "run", *more, "--config.data.stop=first_exhausted") == 1
    told = capsys.readouterr()
    assert "warning: resuming with a change: the data set was" in told.out
    assert "the data cannot be continued after batch 40" in told.err and "replaced by a smaller one" in told.err
    assert steps_in(tmp_path / "run" / "checkpoints") == saved


def test_a_truncated_shard_under_a_resumed_run_is_named(tiny, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(tiny / "packed", tmp_path / "packed")
    shard = max((tmp_path / "packed" / "train").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(shard, shard.stat().st_size // 2)
    more = ["--config.train.steps=50", f"--config.data.path={tmp_path / 'packed'}"]
    assert run_here(tiny, tmp_path / "run", *more) == 1
    assert shard.name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.train.stesp=3"], "did you mean config.train.steps?"),
        (["--config.data.path=/nowhere"], "python -m data_pipelines.pack_shards --input=SHARDS"),
        (["--config.data.length=16"], "rows of 32 tokens"),
        (["--config.data.batch_size=9"], "must be a multiple of"),
        (["--config.data.template=released"], "set --config.data.template=paper"),
        (["--config.data.tokenizers=chameleon"], "was made with vocabulary"),
        (["--config.data.tokenizers=nothing"], "neither a directory nor one of"),
        (["--config.mesh.tensor=3"], "change mesh.* in the config"),
        (["--config.model.attention=flsh"], "TransformerConfig.attention = 'flsh'"),
        (["--config.loss.perceptual_weight=0.1"], "image.safetensors is missing"),
        (["--config.train.init_from=/nowhere"], "/nowhere holds no checkpoint"),
        (["--profile=3"], "--profile=3: give the first and the last step of the trace"),
        (["--workdir=/proc/nothing"], "/proc/nothing"),
    ],
)
def test_what_people_can_mend_is_told_in_words(tiny, tmp_path, capsys, more, message):
    assert run_here(tiny, tmp_path, *more) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_check_reads_the_settings_and_makes_nothing(tiny, tmp_path, capsys):
    assert run_here(tiny, tmp_path / "run", "--check") == 0
    told = capsys.readouterr().out
    assert told.startswith("rows: 32 tokens, 8 a step\n") and "run: 40 steps" in told
    assert run_here(tiny, tmp_path / "run", "--check", "--config.model.num_heads=3") == 1
    assert run_here(tiny, tmp_path / "run", "--check", "--config.optimizer.b1=1.0") == 1
    told = capsys.readouterr().err
    assert "num_heads" in told and "optimizer.b1 = 1.0: must lie in [0, 1)" in told
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_the_same_folder_is_refused(tiny, tmp_path, capsys):
    with only_writer(tmp_path):
        assert run_here(tiny, tmp_path) == 1
    error = capsys.readouterr().err
    assert "another process is writing here" in error and str(tmp_path) in error
    assert not (tmp_path / "checkpoints").exists()


def test_data_without_a_split_is_refused_before_training(tiny, tmp_path, capsys):
    shutil.copytree(tiny / "packed", tmp_path / "packed")
    info = json.loads((tmp_path / "packed" / "dataset.json").read_text())
    del info["splits"]["validation"]
    (tmp_path / "packed" / "dataset.json").write_text(json.dumps(info))
    assert run_here(tiny, tmp_path / "run", f"--config.data.path={tmp_path / 'packed'}") == 1
    assert "has no validation split, only train" in capsys.readouterr().err


def test_control_c_before_training_is_told_in_words(tiny, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module.prepare, "packed_data", interrupt)
    assert run_here(tiny, tmp_path) == 130
    assert "interrupted before training" in capsys.readouterr().err


def test_data_of_another_tokenizer_is_refused(tiny, tmp_path, capsys):
    other = tiny_data.make_packed(tmp_path, documents=10, tokenizers={"image": "another"})
    assert run_here(tiny, tmp_path / "run", f"--config.data.path={other}") == 1
    assert "built with image tokenizer another" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--confg.train.steps=3", "extra", "--config.train.steps"])
def test_a_wrong_command_line_is_a_usage_error(tiny, tmp_path, word):
    with pytest.raises(SystemExit) as exit_:
        main_module.parse_arguments(arguments(tiny, tmp_path, word))
    assert exit_.value.code == 2


def test_overrides_come_with_an_equals_sign_or_a_space(tiny, tmp_path):
    _, overrides = main_module.parse_arguments(
        ["--config=x", f"--workdir={tmp_path}", "--config.train.steps=3", "--config.data.path", "a=b"]
    )
    assert overrides == [("train.steps", "3"), ("data.path", "a=b")]


def test_the_command_needs_neither_tensorflow_nor_torch():
    code = "import sys, ar_omni_jax.main; assert not {'tensorflow', 'torch'} & set(sys.modules)"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, env=environment)


@pytest.mark.slow
def test_smoke_needs_nothing_but_its_command(tmp_path):
    """configs/smoke.py in an empty folder: makes toy data, trains with both losses, leaves a model."""
    command = [sys.executable, "-m", "ar_omni_jax.main", "--config=configs/smoke.py", f"--workdir={tmp_path}"]
    command += ["--config.train.steps=4", "--config.train.log_every=2", "--config.train.eval_batches=1"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=850)
    assert run.returncode == 0, run.stderr
    assert "making a toy data set" in run.stdout
    last = records(tmp_path)[-1]
    assert last["step"] == 4
    assert last["perceptual"] > 0
    assert {"nll/text", "nll/image", "nll/speech"} <= records(tmp_path, "validation")[-1].keys()
    assert load_for_inference(tmp_path).step == 4
