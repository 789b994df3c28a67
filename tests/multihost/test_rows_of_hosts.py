"""Which rows a process reads, for meshes that no single machine has, and that the batch is the same one everywhere."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_data
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ar_omni_jax.parallel import agreement as module
from ar_omni_jax.parallel.agreement import Agreement
from ar_omni_jax.parallel.rows import global_array, rows_here
from data_pipelines.loader import make_loader


class OneHost:
    """A sharding of which only the devices `mine` (places in the mesh) are this process's."""

    def __init__(self, sharding, mine):
        self.sharding, self.mine = sharding, mine

    def addressable_devices_indices_map(self, shape):
        places = self.sharding.devices_indices_map(shape)
        devices = list(self.sharding.mesh.devices.flat)
        return {devices[i]: places[devices[i]] for i in self.mine}


def batch_sharding(data, sequence, tensor):
    names = ("data", "sequence", "tensor")
    mesh = jax.make_mesh((data, sequence, tensor), names, axis_types=(AxisType.Auto,) * 3)
    return NamedSharding(mesh, PartitionSpec("data", "sequence"))


@pytest.mark.parametrize(
    ("shape", "hosts", "rows"),
    [
        ((8, 1, 1), [[0, 1, 2, 3], [4, 5, 6, 7]], [range(8), range(8, 16)]),
        # A torus laid out in a line: the four chips of a host are no neighbours.
        ((8, 1, 1), [[0, 1, 4, 5], [2, 3, 6, 7]], [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]),
        # Heads or positions split over hosts: both read the same rows.
        ((1, 1, 8), [[0, 1, 2, 3], [4, 5, 6, 7]], [range(16), range(16)]),
        ((2, 4, 1), [[0, 1], [2, 3], [4, 5], [6, 7]], [range(8), range(8), range(8, 16), range(8, 16)]),
    ],
)
def test_a_host_reads_the_rows_of_its_devices(shape, hosts, rows):
    sharding = batch_sharding(*shape)
    for mine, expected in zip(hosts, rows, strict=True):
        np.testing.assert_array_equal(rows_here(OneHost(sharding, mine), (16, 32)), list(expected))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_the_global_batch_is_put_together_from_rows(shape):
    sharding = batch_sharding(*shape)
    whole = np.arange(16 * 32).reshape(16, 32)
    rows = rows_here(sharding, whole.shape)
    made = global_array(rows, whole[rows], sharding, whole.shape)
    np.testing.assert_array_equal(made, whole)
    assert made.sharding == sharding


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_loader_gives_any_rows_of_the_same_batches(tmp_path, split):
    packed = tiny_data.make_packed(tmp_path, documents=30)
    common = {"split": split, "global_batch": 8, "seed": 3, "start_step": 1}

    def batches(**more):
        with make_loader({"path": packed}, **common, **more) as loader:
            return [next(loader) for _ in range(min(3, loader.steps - 1))]

    whole = batches()
    for rows in ([0, 1, 4, 5], [2, 3, 6, 7], [7]):
        parts = batches(rows=rows)
        assert len(parts) == len(whole) > 0
        for part, batch in zip(parts, whole, strict=True):
            for name in batch:
                np.testing.assert_array_equal(part[name], batch[name][rows])


def test_one_process_agrees_with_itself_at_once():
    agreement = Agreement()
    assert [agreement(number, step, 20) for step, number in enumerate((0, 0, 15))] == [0, 0, 15]


def test_processes_ask_about_every_five_seconds_and_all_at_the_same_steps(monkeypatch):
    """Two processes in one: each gathers its own row beside the other's."""
    clock = {"now": 0.0}
    asked = []

    def gather(mine):
        asked.append(step)
        return np.stack([mine, np.array([15 if step >= 30 else 0, 2 * mine[1]], np.float32)])

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock["now"]))
    monkeypatch.setattr(module, "jax", SimpleNamespace(process_count=lambda: 2))
    monkeypatch.setattr(module, "multihost_utils", SimpleNamespace(process_allgather=gather))
    agreement, answers = Agreement(), []
    for step in range(1, 41):
        clock["now"] += 0.5
        answers.append(agreement(0, step, 20))
    gaps = np.diff(asked)
    assert asked[:2] == [1, 2], "no pace is known before the second step"
    assert set(gaps[1:]) == {5}, "5 s at the slower one's second a step"
    assert answers[-1] == 0 and max(answers) == 15
    assert next(i for i, number in enumerate(answers, 1) if number) < 30 + 6
