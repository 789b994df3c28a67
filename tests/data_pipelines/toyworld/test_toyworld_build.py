"""The command: deterministic, restartable, and plain about what it cannot do."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import wave

import numpy as np
import pytest
from PIL import Image

from data_pipelines.toyworld.__main__ import main
from data_pipelines.toyworld.build import ToyWorldError, build

pytest.importorskip("espeakng_loader")
REPOSITORY = pathlib.Path(__file__).parents[3]


def tree(folder: pathlib.Path) -> dict[str, str]:
    """Hash of every file under `folder` by its relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start_build(folder: pathlib.Path, size: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipelines.toyworld", f"--output={folder}", f"--size={size}", "--workers=2"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def small_world(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("toyworld") / "world"
    build(folder, size=24, seed=5, workers=1, progress=False)
    return folder


def test_files_are_what_the_manifests_say(small_world):
    summary = json.loads((small_world / "dataset.json").read_text())
    assert summary["complete"] and (summary["size"], summary["seed"]) == (24, 5)
    mentioned = set()
    for split, expected in summary["documents"].items():
        records = [json.loads(line) for line in (small_world / f"{split}.jsonl").read_text().splitlines()]
        assert len(records) == sum(expected.values())
        for record in records:
            mentioned |= {v for t in record["turns"] for p in t["parts"] for k, v in p.items() if k != "text"}
            for facts in record["meta"].get("speech", []):
                with wave.open(str(small_world / facts["path"])) as file:
                    assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
                    assert file.getnframes() / 16000 == pytest.approx(facts["seconds"], abs=1e-3)
                    samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
                assert 0.5 < facts["seconds"] < 8
                assert np.abs(samples.astype(int)).max() == pytest.approx(0.7 * 32767, abs=2)
    media = {f"{name}/{path.name}" for name in ("images", "speech") for path in (small_world / name).iterdir()}
    assert media == mentioned
    assert len(media) == summary["images"] + summary["utterances"]
    assert Image.open(next((small_world / "images").iterdir())).size == (64, 64)


def test_the_number_of_workers_changes_nothing(small_world, tmp_path):
    build(tmp_path / "world", size=24, seed=5, workers=3, progress=False)
    assert tree(tmp_path / "world") == tree(small_world)


def test_another_size_keeps_the_scenes_it_shares(small_world, tmp_path):
    build(tmp_path / "world", size=12, seed=5, workers=1, progress=False)
    small, large = tree(tmp_path / "world"), tree(small_world)
    media = [name for name in small if "/" in name]
    assert media and all(large[name] == small[name] for name in media)


def test_another_seed_is_another_world(small_world, tmp_path):
    build(tmp_path / "world", size=12, seed=6, workers=1, progress=False)
    assert tree(tmp_path / "world")["train.jsonl"] != tree(small_world)["train.jsonl"]


def test_a_killed_build_goes_on_to_the_same_files(small_world, tmp_path):
    folder = tmp_path / "world"
    whole = tmp_path / "whole"
    build(whole, size=60, seed=0, workers=1, progress=False)
    process = start_build(folder, 60)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("speech/*.wav"))) < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Workers hold the pipe too: reading to its end shows that none of them outlived the build.
    process.stderr.read()
    found = tree(folder)
    assert json.loads((folder / "dataset.json").read_text())["complete"] is False
    assert "train.jsonl" not in found and len(found) < len(tree(whole))
    (folder / "speech" / "stray.wav.partial").write_bytes(b"half")
    kept = next(path for path in (folder / "speech").iterdir() if path.suffix == ".wav")
    emptied = next(path for path in (folder / "speech").iterdir() if path.suffix == ".wav" and path != kept)
    emptied.write_bytes(b"")
    before = kept.stat().st_mtime_ns
    assert start_build(folder, 60).wait() == 0
    assert tree(folder) == tree(whole)
    assert kept.stat().st_mtime_ns == before


def test_a_finished_world_is_left_alone(small_world):
    before = {path: path.stat().st_mtime_ns for path in small_world.rglob("*")}
    build(small_world, size=24, seed=5, workers=2, progress=False)
    assert {path: path.stat().st_mtime_ns for path in small_world.rglob("*")} == before


def test_other_arguments_are_refused(small_world):
    before = tree(small_world)
    with pytest.raises(ToyWorldError, match="already holds a toy world with size=24, and you asked for size=25"):
        build(small_world, size=25, seed=5)
    with pytest.raises(ToyWorldError, match="seed=5, and you asked for seed=7"):
        build(small_world, size=24, seed=7)
    with pytest.raises(ToyWorldError, match="spoken_share=1.0, and you asked for spoken_share=0.5"):
        build(small_world, size=24, seed=5, spoken_share=0.5)
    assert tree(small_world) == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ToyWorldError, match="thesis.txt.*new or empty folder"):
        build(tmp_path, size=12)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    (tmp_path / "dataset.json").write_text("not json")
    with pytest.raises(ToyWorldError, match="is not a toy world's dataset.json"):
        build(tmp_path, size=12)


def test_a_folder_in_use_is_refused(tmp_path):
    import fcntl

    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(ToyWorldError, match="another process is building"):
            build(tmp_path, size=12)
    finally:
        os.close(handle)


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main([f"--output={tmp_path}/w", "--size=3"]) == 1
    assert "--size=3 is too small" in capsys.readouterr().err
    assert main([f"--output={tmp_path}/w", "--size=12", "--spoken_share=1.5"]) == 1
    assert "--spoken_share=1.5: give a share from 0 to 1" in capsys.readouterr().err
    assert main([f"--output={tmp_path}/w", "--size=12", "--workers=0"]) == 1
    assert "--workers=0" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main([f"--output={blocked}/w", "--size=12"]) == 1
    message = capsys.readouterr().err
    assert str(blocked) in message and "--output" in message
    with pytest.raises(SystemExit):
        main(["--size=12"])
    assert "--output" in capsys.readouterr().err
