"""Compiles two layers of the 7B shape for an H200 that is not there, and prints what the program writes (JSON).

    python -m tests.decoding.h200_loop WEIGHTS ROWS

Needs the CUDA plugin of this JAX (`jax-cuda12-plugin` and `jax-cuda12-pjrt`, without their dependencies), no GPU.
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from ar_omni_jax.decoding.grammar import class_table  # noqa: E402
from ar_omni_jax.decoding.rows import empty_rows, programs  # noqa: E402
from ar_omni_jax.model.config import chameleon_7b  # noqa: E402
from ar_omni_jax.model.decode_weights import abstract_decode_weights  # noqa: E402
from ar_omni_jax.vocabulary import chameleon_vocabulary  # noqa: E402
from tests.decoding.hlo import written_arrays  # noqa: E402

TARGET = Path(__file__).parent.parent / "golden" / "h200_target_config.txtpb"
SLOTS = 2048


def main(weights: str, rows: int) -> dict:
    target = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", target_config=TARGET.read_text(), topology="1x1x1"
    )
    made, config = abstract_decode_weights(chameleon_7b(num_layers=2), weights)
    table = class_table(chameleon_vocabulary())
    state = jax.eval_shape(lambda: empty_rows(config, table, rows, SLOTS))
    given = (made, state, np.ones(rows, bool), np.int32(4), np.bool_(False))
    place = SingleDeviceSharding(target.devices[0])
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=place), given)
    compiled = programs()[1].lower(*given, config=config, width=16).compile()
    memory = compiled.memory_analysis()
    return {
        "temporary_bytes": memory.temp_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "cache_bytes": sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((state.cache.keys, state.cache.values))),
        "cache_shape": state.cache.keys[0].shape,
        "written": written_arrays(compiled.as_text(), config.d_model**2 // 8),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
