"""No command holds its corpus: its peak of memory, with its processes, is the same for ten times as much."""

import pytest

from data_pipelines.benchmark import growth

# MiB: what libraries allocate at random; of a build also its two windows of 1,024 decoded sounds (64 KiB each), which
# only the larger corpus fills. It has 145 MiB of them in all, and 35 of tokens.
ALLOWED = {"build_shards, vctk": 192, "pack_shards": 20, "pack_shards, buckets": 20, "inspect_shards": 20, "loader": 20}


@pytest.mark.slow
@pytest.mark.parametrize("command", list(ALLOWED))
def test_memory_does_not_grow_with_the_corpus(tmp_path, command):
    documents = 256 if command.startswith("build") else 1000
    ((name, (small, large)),) = growth.measure_memory(tmp_path, documents, [command]).items()
    assert name == command and 20 < small and large < small + ALLOWED[command], f"{small:.0f} MiB, then {large:.0f} MiB"
