"""The loader as training makes it: hosts and workers change nothing, at the start and after; workers that fail."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import tiny_data
from corpus import make_documents, write_documents

from ar_omni_jax import main
from ar_omni_jax.config import base_config
from data_pipelines.loader import make_loader
from data_pipelines.pack_shards import PackOptions, pack

STEPS = 9


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What `main` makes of the settings before it trains."""
    folder = tmp_path_factory.mktemp("run")
    config = base_config()
    config.model.update(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32)
    packed = tiny_data.make_packed(folder, tokenizers=None)
    tokenizers = tiny_data.make_tokenizers(folder / "tokenizers")
    config.data.update(length=32, batch_size=8, path=str(packed), tokenizers=str(tokenizers), stop="repeat")
    return main.assemble(config, folder / "work")


def read(run, hosts, workers, start, steps):
    """Batches [start, start + steps) put together from what each host is given."""
    parts = []
    run.config.data.workers = workers
    for host in range(hosts):
        with pytest.MonkeyPatch.context() as patch:
            # As where the devices of each host hold their part of the rows (tests/multihost has real ones).
            mine = np.arange(8 // hosts) + 8 // hosts * host
            patch.setattr(run.trainer, "rows_here", lambda rows, length, mine=mine: mine)
            with run.open_loader("train", start) as loader:
                parts.append([next(loader) for _ in range(steps)])
                assert loader.step == start + steps and parts[-1][0]["tokens"].shape == (8 // hosts, 32)
    return [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts, strict=True)]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def alone(run):
    return read(run, 1, 0, 0, STEPS)


SLOW = pytest.mark.slow
PLACES = [pytest.param(h, w, marks=SLOW if w else ()) for h in (1, 2, 4) for w in (0, 2)]


@pytest.mark.parametrize(("hosts", "workers"), PLACES)
def test_hosts_and_workers_change_nothing(run, alone, hosts, workers):
    starts = (2,) if workers else (0, 5)  # processes take seconds to start
    for start in starts:
        assert_same(read(run, hosts, workers, start, STEPS - start), alone[start:])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=SLOW)])
def test_a_run_goes_on_elsewhere(run, alone, workers):
    found = []
    for hosts, steps, helpers in ((1, 1, 0), (2, 2, workers), (4, 1, 0), (8, 2, 0), (1, 2, workers), (2, 1, 0)):
        found += read(run, hosts, helpers, len(found), steps)
    assert_same(found, alone)


# -- workers that fail ---------------------------------------------------------------------------------------
def packed(tmp_path):
    write_documents(tmp_path / "in", {"train": make_documents(300)})
    pack(tmp_path / "in", tmp_path / "out", PackOptions(512, unit_tokens=20_000))
    return tmp_path / "out"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_corrupt_record_ends_the_workers_with_its_name(tmp_path):
    folder = packed(tmp_path)
    for path in (folder / "train").glob("speech-*"):
        data = bytearray(path.read_bytes())
        data[6000:8000] = bytes(2000)  # the end of so small a file is padding
        path.write_bytes(data)
    settings = {"path": folder, "stop": "repeat"}
    with make_loader(settings, split="train", global_batch=8, seed=0, workers=2) as loader:
        with pytest.raises(ValueError, match=r"speech-\d+-of-\d+.arrayrecord"):
            for _ in range(200):
                next(loader)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_killed_worker_does_not_hang_or_end_the_stream(tmp_path):
    settings = {"path": packed(tmp_path), "stop": "repeat"}
    before = {p.pid for p in multiprocessing.active_children()}
    with make_loader(settings, split="train", global_batch=8, seed=0, workers=2) as loader:
        next(loader)
        workers = [p for p in multiprocessing.active_children() if p.pid not in before]
        assert len(workers) >= 2
        os.kill(workers[0].pid, signal.SIGKILL)
        with pytest.raises(Exception) as error:
            for _ in range(2000):
                next(loader)
        assert not isinstance(error.value, StopIteration)
