"""No command holds its corpus: its peak of memory, with its processes, is the same for ten times as much."""

import pytest

from data_pipelines.benchmark import growth

ALLOWED = 24  # MiB: what libraries allocate at random; the larger corpus has some 70 (sounds) and 30 (tokens) more


@pytest.mark.slow
@pytest.mark.parametrize("command", ["build_shards, webdataset", "pack_shards", "inspect_shards", "loader"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, command):
    documents = 256 if command.startswith("build") else 1000
    ((name, (small, large)),) = growth.measure_memory(tmp_path, documents, [command]).items()
    assert name == command and 20 < small and large < small + ALLOWED, f"{small:.0f} MiB, then {large:.0f} MiB"
