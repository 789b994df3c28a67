"""Time and memory of converting a model of the 7B shape, with random weights made on the spot.

python -m ar_omni_jax.interop.bench --output=DIR             # all 32 layers: 13.5 GB, three times on the disk at most
python -m ar_omni_jax.interop.bench --output=DIR --layers=8 --through=orbax,meta

Makes an HF model layer by layer, converts it to each layout and back by the command, each in a process of its own, and
prints one JSON object: seconds and peak resident memory (GiB, Linux's `VmHWM`) of each conversion. The way back is
compared with the start, tensor by tensor. What is no longer needed is removed on the way (--keep leaves everything).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ar_omni_jax.interop.arrays import DTYPES
from ar_omni_jax.interop.backbone import SEPARATE, Backbone, shapes
from ar_omni_jax.interop.registry import layout
from ar_omni_jax.machine import peak_resident_bytes
from ar_omni_jax.model.config import TransformerConfig, chameleon_7b
from ar_omni_jax.vocabulary import JointVocabulary, chameleon_vocabulary, compact_vocabulary

TINY = dict(num_layers=2, d_model=64, num_heads=4, num_kv_heads=4, head_dim=16, d_ff=96)


def random_backbone(config: TransformerConfig, vocabulary: JointVocabulary, dtype: str, seed: int = 0) -> Backbone:
    """Weights that are made when they are asked for, the same each time: +-[1/64, 1/32), all bits of bfloat16 random
    but the exponent. (Normal numbers would take longer to draw than to convert.)"""
    table = shapes(config, SEPARATE)

    def get(name: str) -> np.ndarray:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        bits = np.frombuffer(bytearray(rng.bytes(2 * math.prod(table[name]))), np.uint16)
        bits &= 0x807F
        bits |= 0x3C80
        return bits.view(DTYPES["bfloat16"]).reshape(table[name]).astype(DTYPES[dtype], copy=False)

    settings = {"tokenizers": "chameleon", "template": "released"}
    return Backbone(config, SEPARATE, dict.fromkeys(table, dtype), get, tuple(table), vocabulary, settings)


def measured(arguments: Sequence[str]) -> dict[str, float]:
    """Runs `convert` in a process of its own: {"seconds", "peak_gib"}; RuntimeError when it fails."""
    code = (
        "import sys\nfrom ar_omni_jax import convert\nfrom ar_omni_jax.machine import peak_resident_bytes\n"
        "code = convert.main(sys.argv[1:])\n"
        "print('peak', peak_resident_bytes(), file=sys.stderr)\nsys.exit(code)"
    )
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    peak, lines = 0, []
    for line in process.stderr:
        if line.startswith("peak "):
            peak = int(line.split()[1])
        else:
            lines.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    if process.wait():
        raise RuntimeError(f"convert {' '.join(arguments)} failed:\n{''.join(lines[-5:])}")
    return {"seconds": round(time.monotonic() - start, 1), "peak_gib": round(peak / 2**30, 2)}


def require_equal(made: Backbone, folder: Path) -> None:
    """RuntimeError naming the first tensor of the HF folder that is not bit-equal."""
    found = layout("hf").load(folder, None)
    for name in made.shapes:
        if made.get(name).tobytes() != found.get(name).tobytes():
            raise RuntimeError(f"{folder}: {name} came back changed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.interop.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to work in; needs room for three copies")
    parser.add_argument("--layers", type=int, default=32, help="of the 7B model's 32")
    parser.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    parser.add_argument("--through", default="orbax", help="layouts to convert to and back: orbax,meta,vendored")
    parser.add_argument("--keep", action="store_true", help="remove nothing")
    parser.add_argument("--tiny", action="store_true", help="a model of a few kilobytes, to try the command")
    options = parser.parse_args(arguments)
    vocabulary = compact_vocabulary(40, 16, 16, (2, 2)) if options.tiny else chameleon_vocabulary()
    shape = TINY | {"vocab_size": vocabulary.size} if options.tiny else {}
    config = chameleon_7b(**({"num_layers": options.layers} | shape), param_dtype=options.dtype)
    made = random_backbone(config, vocabulary, options.dtype)
    start, source = time.monotonic(), options.output / "hf"
    layout("hf").save(made, source, argparse.Namespace(image_tokenizer="", max_shard_size=5 * 10**9))
    report = {"layers": config.num_layers, "parameters": config.parameter_count(), "dtype": options.dtype}
    report |= {"bytes": made.size(), "making_seconds": round(time.monotonic() - start, 1), "conversions": []}
    for name in options.through.split(","):
        there, back = options.output / name, options.output / f"hf-from-{name}"
        for source_path, target_path, layouts in ((source, there, ("hf", name)), (there, back, (name, "hf"))):
            words = [f"--from={layouts[0]}", f"--to={layouts[1]}", f"--input={source_path}", f"--output={target_path}"]
            report["conversions"].append({"from": source_path.name, "to": target_path.name, **measured(words)})
        require_equal(made, back)
        if not options.keep:
            shutil.rmtree(there)
            shutil.rmtree(back)
    if not options.keep:
        shutil.rmtree(source)
    report["own_peak_gib"] = round(peak_resident_bytes() / 2**30, 2)
    report["bit_equal"] = True
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
