"""Processes that decode: what they import, what comes back, and how they end."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ar_omni_jax.tokenizers import image, speech
from ar_omni_jax.vocabulary import Modality
from data_pipelines import decode_pool as pools
from data_pipelines.decode import DecodeRequest, decode
from data_pipelines.decode_pool import ProcessPool, WorkerDied, decode_pool

ROOT = Path(pools.__file__).parents[1]
HEAVY = ("jax", "jaxlib", "flax", "torch", "tensorflow", "transformers", "grain", "pytest")


# Called in the processes; they find this file by its name.
def slowly(seconds, value):
    time.sleep(seconds)
    return value


def fail():
    raise EOFError("the decoder's own")


def die_in_an_answer(size):
    """Is killed when half of a large answer has been sent."""

    def half(pipe, data):
        os.write(pipe.fileno(), bytes(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    multiprocessing.connection.Connection._send = half
    return b"x" * size


def decoders():
    return [p for p in multiprocessing.active_children() if p.name == "decode"]


def test_the_processes_import_neither_jax_nor_torch_nor_the_program_that_started_them():
    request = DecodeRequest("d", Modality.IMAGE, np.zeros((8, 8, 3), np.uint8), 8)
    with decode_pool(1) as pool:
        assert pool.submit(decode, request).result().value.shape == (8, 8, 3)
        modules = pool.submit(eval, "sorted(__import__('sys').modules)").result()
    found = sorted({name.partition(".")[0] for name in modules} & {*HEAVY})
    assert not found and "data_pipelines.decode" in modules and not decoders()


@pytest.mark.parametrize("package", [image, speech])
def test_what_needs_jax_is_still_a_name_of_its_package(package):
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert package.__dict__.keys().isdisjoint({"ImageTokenizer", "SpeechTokenizer"})  # imported when asked for
    with pytest.raises(AttributeError, match=f"{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_a_script_without_a_guard_may_use_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nprint('started')\n"
        "from data_pipelines.decode_pool import decode_pool\n"
        "with decode_pool(2) as pool:\n    print(sum(pool.map(abs, [-1, -2, -3])))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["started", "6"] and not done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_results_belong_to_their_calls(workers):
    with decode_pool(workers, None if workers else 2) as pool:
        futures = [pool.submit(slowly, 0.01 * (i % 3), i) for i in range(12)]
        assert [future.result() for future in futures] == list(range(12))


def test_decoding_gives_the_same_samples_and_the_same_words_in_a_process(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("this is text")
    values = [str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), str(tmp_path / "none.png")]
    values += [str(tmp_path / "bad.png"), b"this is text", b""]
    requests = [DecodeRequest("d", Modality.IMAGE, value, 16) for value in values]
    requests += [DecodeRequest("d", Modality.SPEECH, rng.uniform(-1, 1, 500).astype(np.float32), 8000)]
    requests += [DecodeRequest("d", Modality.SPEECH, value, 8000) for value in values[1:]]
    with decode_pool(2) as pool:
        there = list(pool.map(decode, requests))
    for here, other in zip(map(decode, requests), there, strict=True):
        assert (here.value is None) == (other.value is None) and here.error == other.error
        assert here.value is None or (here.value.tobytes() == other.value.tobytes() and other.seconds > 0)
    assert "none.png" in there[2].error and "image of the record: " in there[4].error


def test_an_error_of_a_call_has_its_traceback_and_ends_nothing():
    with decode_pool(1) as pool:
        with pytest.raises(RuntimeError, match="(?s)in a decoding process.*in fail.*the decoder's own"):
            pool.submit(fail).result()
        assert pool.submit(abs, -1).result() == 1


# -- ends ---------------------------------------------------------------------------------------------------------
TOLD = "killed by signal 9 .SIGKILL.*while it had {}. Finished shards are kept: run the same command again"


def test_a_process_that_is_killed_is_told_with_what_it_had():
    with decode_pool(2) as pool:
        assert pool.submit(abs, -1).result() == 1
        future = pool.submit(time.sleep, 60)
        while not future.running():
            time.sleep(0.01)
        for process in decoders():
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=TOLD.format(60)):
            future.result(60)
        with pytest.raises(WorkerDied, match=TOLD.format(60)):  # and none is begun any more
            pool.submit(abs, -1).result(60)
    assert not decoders()


def test_half_an_answer_keeps_nobody_waiting():
    with decode_pool(2) as pool, pytest.raises(WorkerDied, match=TOLD.format(100_000)):
        pool.submit(die_in_an_answer, 100_000).result(60)
    assert not decoders()


def test_a_process_that_leaves_is_told():
    with decode_pool(1) as pool, pytest.raises(WorkerDied, match="ended with exit code 3 while it had 3"):
        pool.submit(os._exit, 3).result(60)


def test_a_block_that_fails_waits_for_nobody():
    start = time.monotonic()
    with pytest.raises(KeyError), ProcessPool(2) as pool:
        futures = [pool.submit(slowly, 100, i) for i in range(9)]
        pool.submit(abs, -1)
        raise KeyError
    assert time.monotonic() - start < 50 and not decoders()
    assert all(future.cancelled() or isinstance(future.exception(), WorkerDied) for future in futures)
    start = time.monotonic()
    with pytest.raises(KeyError), decode_pool(0, 1) as pool:
        futures = [pool.submit(slowly, 0.2, i) for i in range(50)]
        raise KeyError
    assert time.monotonic() - start < 5 and futures[-1].cancelled()


def test_no_process_is_started_for_nothing():
    with decode_pool(2):
        assert not decoders()
    assert isinstance(decode_pool(0), concurrent.futures.ThreadPoolExecutor)


def test_the_usual_number_leaves_a_core(monkeypatch):
    found = []
    for count in (1, 2, 8, 100):
        monkeypatch.setattr(pools, "cores", lambda count=count: count)
        found.append(pools.default_workers())
    assert found == [1, 1, 7, 16]
