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
from ar_omni_jax.tokenizers.train import CheckpointError, Trainer, create_task

ROOT = Path(__file__).parents[2]
PICTURES = 64
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
    "kmeans_images": 4,
    "kmeans_iterations": 2,
    "revive_every": 7,
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


def _start(command):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)


def _metrics(workdir, split="train"):
    path = Path(workdir) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["step"]: line for line in lines if line["split"] == split}


def _wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
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
def finished(pictures, tmp_path_factory):
    """A run that nobody disturbed: its folder, and the picture first read after the second checkpoint."""
    workdir, config = tmp_path_factory.mktemp("undisturbed"), _config(pictures)
    trainer = Trainer(create_task(config), config, workdir, "the command")
    decode, reads = trainer.task.train_set._decode, []

    def recording(index):
        reads.append((index, 10 in _metrics(workdir)))
        return decode(index)

    trainer.task.train_set._decode = recording
    assert trainer.run() == 0
    return workdir, [index for index, late in reads if late][2]


def test_it_learns_and_exports_a_tokenizer(finished):
    workdir, _ = finished
    losses = [line["loss"] for line in _metrics(workdir).values()]
    assert len(losses) == 20 and np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])
    tokenizer = ImageTokenizer.load(workdir / "image")
    assert (tokenizer.codebook_size, tokenizer.grid) == (8, (4, 4))
    provenance = json.loads((workdir / "image.json").read_text())["provenance"]
    assert provenance["step"] == 20 and provenance["command"] == "the command"
    assert provenance["metrics"]["psnr"] == _metrics(workdir, "eval")[20]["psnr"]
    assert "data_dir" not in provenance["config"]
    sheet = Image.open(workdir / "samples/step_0000020/reconstructions.png")
    assert sheet.size == (8 * 8, 2 * 8)


def test_kill_9_and_resume_is_bitwise_the_undisturbed_run(finished, pictures, tmp_path):
    """A pipe in place of one picture holds the command in the middle of training until it is killed."""
    undisturbed, late_picture = finished
    picture = pictures / f"{late_picture}.png"
    data, workdir = picture.read_bytes(), tmp_path / "run"
    picture.unlink()
    os.mkfifo(picture)
    try:
        process = _start(_command(pictures, workdir))
        _wait_for(lambda: 10 in _metrics(workdir, "eval"), process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    finally:
        picture.unlink()
        picture.write_bytes(data)
    reached = max(_metrics(workdir))
    assert 10 <= reached < 20
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "spl')  # as if the kill had cut a line

    config = _config(pictures)
    assert Trainer(create_task(config), config, workdir).run() == 0
    assert _metrics(workdir) == _metrics(undisturbed)
    ours, theirs = (load_file(folder / "checkpoint.safetensors") for folder in (workdir, undisturbed))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_sigterm_saves_and_says_how_to_go_on(pictures, tmp_path):
    process = _start(_command(pictures, tmp_path, steps=10**6, eval_every=10**6, checkpoint_every=10**6))
    _wait_for(lambda: 5 in _metrics(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "run the same command to go on" in output
    step = max(_metrics(tmp_path))
    assert f"saved after step {step}" in output
    config = _config(pictures, steps=step)
    assert Trainer(create_task(config), config, tmp_path).run() == 0  # resumes at its end: exports only
    assert json.loads((tmp_path / "image.json").read_text())["provenance"]["step"] == step


def test_another_config_does_not_resume(finished, pictures):
    config = _config(pictures, learning_rate=1e-4)
    with pytest.raises(CheckpointError, match="learning_rate: 0.005 then, 0.0001 now"):
        Trainer(create_task(config), config, finished[0]).run()


def test_damaged_checkpoint_is_named(pictures, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    config = _config(pictures)
    with pytest.raises(CheckpointError, match="checkpoint.safetensors is not readable"):
        Trainer(create_task(config), config, tmp_path).run()


def test_missing_data_is_explained(pictures, tmp_path):
    process = _start(_command(tmp_path / "nowhere", tmp_path / "run"))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1
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
