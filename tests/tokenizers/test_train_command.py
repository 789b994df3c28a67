"""The codec training command: learns, survives kill -9 bit for bit, saves on SIGTERM, explains errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ar_omni_jax.tokenizers.image import ImageTokenizer
from ar_omni_jax.tokenizers.image.data import batch_indices
from ar_omni_jax.tokenizers.train import CheckpointError, Trainer, create_task

ROOT = Path(__file__).parents[2]
PICTURES = 64
PATIENCE = 400  # seconds, for a busy machine
OVERRIDES = {
    "steps": 20,
    "batch_size": 2,
    "log_every": 1,
    "eval_every": 10,
    "eval_images": 4,
    "checkpoint_every": 5,
    "warmup_steps": 1,
    "learning_rate": 5e-3,
    "crop_until": 2,
    "crop_size": 4,
    "crop_batch_size": 2,
    "codebook_start": 6,
    "kmeans_images": 2,
    "kmeans_iterations": 2,
    "revive_every": 16,
    "model.n_embed": 8,
    "model.embed_dim": 4,
    "model.ddconfig.ch": 4,
    "model.ddconfig.ch_mult": (1, 1),
    "model.ddconfig.z_channels": 4,
    "model.ddconfig.num_groups": 2,
    "model.ddconfig.resolution": 8,
}


def _config(data_dir, **changes):
    scope = {}
    exec((ROOT / "configs/tokenizer_image.py").read_text(), scope)
    config = scope["get_config"]()
    with config.unlocked():
        config.update_from_flattened_dict({**OVERRIDES, "data_dir": str(data_dir), **changes})
    return config


def _command(data_dir, workdir, **changes):
    settings = {**OVERRIDES, "data_dir": data_dir, **changes}
    return [
        sys.executable, "-m", "ar_omni_jax.tokenizers.train",
        "--config=configs/tokenizer_image.py", f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]  # fmt: skip


def _start(command, cache):
    """The command as a process; compiled programs are shared between the runs of this file."""
    caching = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **caching}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)


def _finish(process, code=0):
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, output
    return output


def _metrics(workdir, split="train"):
    path = Path(workdir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return {line["step"]: line for line in lines if line["split"] == split}


def _wait_for(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the command got nowhere"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two-coloured 8x8 pictures with a manifest of the toy world's form."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    names = [f"{index}.png" for index in range(PICTURES)]
    for name in names:
        colours = rng.integers(150, 256, (2, 3), np.uint8)  # bright, so that there is a mean to learn at once
        Image.fromarray(colours[np.indices((8, 8))[rng.integers(2)] // 4]).save(folder / name)
    records = [{"id": name, "turns": [{"role": "user", "parts": [{"image": name}]}]} for name in names]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def finished(pictures, cache, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    _finish(_start(_command(pictures, workdir), cache))
    return workdir


@pytest.fixture
def late_pipe(pictures):
    """A named pipe in place of a picture first needed after step 12: it holds a run there, in mid-step."""
    task = create_task(_config(pictures))
    for step in range(12):
        task._batch(step, 0)
    late = [index for step in (12, 13) for index in batch_indices(PICTURES, 2, step, 0)]
    picture = pictures / f"{next(index for index in late if not task.train_set._known[index])}.png"
    data = picture.read_bytes()
    picture.unlink()
    os.mkfifo(picture)
    yield picture, data
    picture.unlink()
    picture.write_bytes(data)


def test_it_learns_and_exports_a_tokenizer(finished):
    losses = [line["loss"] for line in _metrics(finished).values()]
    assert len(losses) == 20 and np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])
    tokenizer = ImageTokenizer.load(finished / "image")
    assert (tokenizer.codebook_size, tokenizer.grid) == (8, (4, 4))
    provenance = json.loads((finished / "image.json").read_text())["provenance"]
    assert provenance["step"] == 20 and "--config.data_dir=DATA" in provenance["command"]
    assert provenance["metrics"]["psnr"] == _metrics(finished, "eval")[20]["psnr"]
    assert "data_dir" not in provenance["config"]
    sheet = Image.open(finished / "samples/step_0000020/reconstructions.png")
    assert sheet.size == (8 * 8, 2 * 8)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_and_resumed_is_bitwise_the_undisturbed_run(number, finished, pictures, cache, late_pipe, tmp_path):
    pipe, data = late_pipe
    process = _start(_command(pictures, tmp_path), cache)
    _wait_for(lambda: 12 in _metrics(tmp_path), process)
    process.send_signal(number)
    if number == signal.SIGKILL:
        _finish(process, -number)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 13, "spl')  # as if the kill had cut a line
    else:
        pipe.write_bytes(data)  # lets the step end
        output = _finish(process, 128 + number)
        assert "run the same command to go on" in output
        assert f"saved after step {max(_metrics(tmp_path))}" in output
    stopped = max(_metrics(tmp_path))
    assert 12 <= stopped < 20

    pipe.unlink()
    pipe.write_bytes(data)
    output = _finish(_start(_command(pictures, tmp_path), cache))
    assert f"resuming after step {10 if number == signal.SIGKILL else stopped}" in output
    assert _metrics(tmp_path) == _metrics(finished)
    assert _metrics(tmp_path, "eval") == _metrics(finished, "eval")
    ours, theirs = (load_file(folder / "checkpoint.safetensors") for folder in (tmp_path, finished))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_another_config_does_not_resume(finished, pictures):
    config = _config(pictures, learning_rate=1e-4)
    with pytest.raises(CheckpointError, match="learning_rate: 0.005 then, 0.0001 now"):
        Trainer(create_task(config), config, finished).run()


def test_damaged_checkpoint_is_named(pictures, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    config = _config(pictures)
    with pytest.raises(CheckpointError, match="checkpoint.safetensors is not readable"):
        Trainer(create_task(config), config, tmp_path).run()


def test_missing_data_is_explained(cache, tmp_path):
    output = _finish(_start(_command(tmp_path / "nowhere", tmp_path / "run"), cache), code=1)
    assert output.strip().splitlines()[-1].startswith("error: ") and "train.jsonl does not exist" in output
    assert "Traceback" not in output


def test_bad_data_and_settings_are_named(tmp_path, pictures):
    with pytest.raises(ValueError, match="data_dir is empty"):
        create_task(_config(""))
    with pytest.raises(ValueError, match="config.kind must be one of"):
        create_task(_config(pictures, kind="smell"))
    with pytest.raises(ValueError, match="config.log_every must be 1 or more"):
        create_task(_config(pictures, log_every=0))
    cases = (("{}\n", "names no picture"), ("{}\n{", "line 2: not JSON"), ('{"image": "x.png"}', "x.png"))
    for content, message in cases:
        (tmp_path / "train.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            create_task(_config(tmp_path))
