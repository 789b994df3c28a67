"""Builds whose media are decoded by processes: the same bytes and words for any number, and clean ends."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_build_shards import BAD, build, files, make_bad_media, make_corpus, make_tokenizers

from data_pipelines import build_shards
from data_pipelines.benchmark.memory import processes_below
from data_pipelines.build_shards import BuildProgress
from data_pipelines.decode_pool import WorkerDied
from data_pipelines.shard_builder import BuildError

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes through /proc")
PATIENCE = 120  # seconds


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A manifest with every kind of bad record among good ones."""
    root = tmp_path_factory.mktemp("damaged")
    lines = make_corpus(root, 40).read_text().splitlines()
    make_bad_media(root)
    for i, name in enumerate(sorted({*BAD} - {"image bomb"})):  # the one not made here
        record = BAD[name][0]
        lines.insert(3 * i, record if isinstance(record, str) else json.dumps(record | {"id": record["id"] + str(i)}))
    (root / "train.jsonl").write_text("\n".join(lines) + "\n")
    return root / "train.jsonl"


def test_any_number_of_workers_makes_the_same_files_with_the_same_reasons(damaged, tmp_path):
    options = {"on_error": "skip", "error_budget": 0.5}
    build(damaged, tmp_path / "0", workers=0, **options)
    expected = files(tmp_path / "0")
    reasons = b"".join(data for name, data in expected.items() if name.endswith(".json")).decode()
    for name in ("cut.png", "cut.jpg", "bomb.jpg", "text.wav", "no samples"):
        assert name in reasons
    for workers in (1, 2, 4):
        build(damaged, tmp_path / str(workers), workers=workers, **options)
        assert files(tmp_path / str(workers)) == expected
    for index in (1, 0):
        build(damaged, tmp_path / "array", workers=1, worker_index=index, worker_count=2, **options)
    assert files(tmp_path / "array") == expected
    for workers in (0, 1):
        with pytest.raises(BuildError, match="(?s)bomb.jpg.*on_error=skip"):
            build(damaged, tmp_path / "fail", workers=workers)
    assert not multiprocessing.active_children()


def test_threads_are_for_builds_without_processes(damaged, tmp_path, monkeypatch):
    for options in ({"workers": 2, "threads": 2}, {"workers": -1}, {"threads": 0}):
        with pytest.raises(BuildError, match="either processes decode, or threads with workers=0"):
            build(damaged, tmp_path, **options)
    seen = []
    monkeypatch.setattr(build_shards, "build", lambda *_, **options: seen.append(options))
    monkeypatch.setattr(build_shards, "load_tokenizers", lambda name: make_tokenizers())
    monkeypatch.setattr(build_shards, "default_workers", lambda: 5)
    for flags in ([], ["--workers=0"], ["--workers=2"], ["--threads=3"]):
        build_shards.main([f"--input={damaged}", f"--output={tmp_path}", *flags])
    found = [(options["workers"], options["threads"]) for options in seen]
    assert found == [(5, None), (0, None), (2, None), (0, 3)]


def test_progress_tells_media(damaged, tmp_path, capsys, monkeypatch):
    stream = io.StringIO()
    with BuildProgress(8, stream=stream) as progress:
        progress.add(4, 100, 3)
        progress.add(2, 100)
    assert progress.media == 3 and "6/8 documents" in stream.getvalue()
    assert all(unit in stream.getvalue() for unit in (" documents/s, ", " tokens/s, ", " media/s, ", " s left"))
    build(damaged, tmp_path, workers=1, on_error="skip", error_budget=0.5, quiet=False)
    said = capsys.readouterr().err
    assert "media/s" in said and "in 1 process (" in said


# -- ends ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def endless(tmp_path):
    """(manifest, picture): a corpus one of whose pictures, that of documents 25 to 29, takes for ever to read."""
    manifest = make_corpus(tmp_path, 40)
    picture = tmp_path / "5.png"
    picture.rename(tmp_path / "picture")
    os.mkfifo(picture)
    return manifest, picture


def mend(picture):
    picture.unlink()
    (picture.parent / "picture").rename(picture)


def wait_for_reader(picture, command):
    """(process below `command` that reads the endless picture, file descriptor that keeps it reading)."""
    deadline, handle = time.monotonic() + PATIENCE, None
    while time.monotonic() < deadline:
        time.sleep(0.02)
        try:
            handle = os.open(picture, os.O_WRONLY | os.O_NONBLOCK) if handle is None else handle
        except OSError:  # nobody reads it yet
            continue
        for pid in processes_below(command):
            if any(os.path.realpath(link) == str(picture.resolve()) for link in Path(f"/proc/{pid}/fd").iterdir()):
                return pid, handle
    raise AssertionError("nobody reads the picture")


def alive(pid):
    """Whether it still does anything: what nobody has asked for its exit code is still listed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_mended(manifest, picture, output):
    """What is there are finished shards only, and another run makes all."""
    assert len(list(output.glob("*.arrayrecord"))) == 3 and not list(output.rglob(".*.tmp"))
    mend(picture)
    build(manifest, output, workers=1)
    build(manifest, output.parent / "whole")
    assert files(output) == files(output.parent / "whole")


@LINUX
@pytest.mark.timeout(2 * PATIENCE)
def test_a_killed_worker_ends_the_build_and_names_its_record(endless, tmp_path):
    manifest, picture = endless

    def kill():
        pid, handle = wait_for_reader(picture, os.getpid())
        os.kill(pid, signal.SIGKILL)
        os.close(handle)

    killer = threading.Thread(target=kill)
    killer.start()
    message = "(?s)killed by signal 9.*document 'd25': .*5.png.*run the same command again.*smaller --workers"
    with pytest.raises(WorkerDied, match=message):
        build(manifest, tmp_path / "out", workers=2)
    killer.join()
    assert not multiprocessing.active_children()
    check_mended(manifest, picture, tmp_path / "out")


def deaf_to_interrupts(pid: int) -> bool:
    """From its first instruction on: SIGINT is blocked or ignored."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return bool((int(status["SigBlk"], 16) | int(status["SigIgn"], 16)) >> (signal.SIGINT - 1) & 1)


COMMAND = """
import sys
sys.path[:0] = sys.argv[3:]
import test_build_shards as t
t.build_shards.load_tokenizers = lambda name: t.make_tokenizers()
flags = ["--records_per_shard=7", "--workers=2"]
t.build_shards.main([f"--input={sys.argv[1]}", f"--output={sys.argv[2]}", *flags])
"""


@LINUX
@pytest.mark.timeout(3 * PATIENCE)
@pytest.mark.parametrize("sent,code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_no_process_outlives_the_command(endless, tmp_path, sent, code):
    """SIGINT goes to all of them, as terminals send it, the others to the command alone."""
    manifest, picture = endless
    output, root = tmp_path / "out", Path(build_shards.__file__).parents[1]
    command = [sys.executable, "-c", COMMAND, str(manifest), str(output), str(Path(__file__).parent), str(root)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        reader, handle = wait_for_reader(picture, process.pid)
        below = processes_below(process.pid)
        assert reader in below and len(below) >= 2
        assert all(map(deaf_to_interrupts, below))
        (os.killpg if sent == "SIGINT" else os.kill)(process.pid, getattr(signal, sent))
        _, said = process.communicate(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(map(alive, below)):
            time.sleep(0.05)
        assert not [pid for pid in below if alive(pid)]
        os.close(handle)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code and "Traceback" not in said
    if sent == "SIGKILL":
        return  # it could clear nothing away; other tests kill and go on
    assert "finished shards are kept, run the same command" in said
    check_mended(manifest, picture, output)
