"""Converts weights between this project and PyTorch programs; see docs/pytorch.md.

python -m ar_omni_jax.convert --to=orbax --input=chameleon-7b-hf --output=runs/chameleon
python -m ar_omni_jax.convert --to=hf --input=runs/mine --output=mine-hf --dtype=bfloat16
python -m ar_omni_jax.convert --to=meta --input=runs/mine --output=mine-meta --model_parallel_size=2
python -m ar_omni_jax.convert --to=orbax --input=anole/models/7b --output=runs/anole --init_rows=speech,boa,eoa,eoh,eom
python -m ar_omni_jax.convert --from=vqgan --to=tokenizer --input=vqgan.ckpt --output=tokenizers
python -m ar_omni_jax.convert --from=tokenizer --to=wavtokenizer --input=tokenizers --output=exported

The input's layout is recognised by its keys and printed; --from names it where that fails. Every tensor is used exactly
once: what is missing, unexpected or wrongly shaped is listed, and then nothing is written. A run that was killed can be
started again.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ar_omni_jax.interop.arrays import DTYPES, KEEP
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.registry import LAYOUTS, detect, layout
from ar_omni_jax.model.config import NORM_PLACEMENTS
from ar_omni_jax.templates import TEMPLATE_SETS

BACKBONE = "backbone"
_BACKBONES = ("orbax", "hf", "vendored", "meta")
# Options that mean something to some layouts only: name -> (which end of the conversion, its layouts).
_MEANT_FOR = {
    "config": ("source", ("vqgan", "wavtokenizer")),
    "step": ("source", ("orbax",)),
    "model_parallel_size": ("target", ("meta",)),
    "max_shard_size": ("target", ("hf", "vendored")),
    "image_tokenizer": ("target", ("hf",)),
}
_MEANT_FOR |= dict.fromkeys(
    ("dtype", "vocabulary", "tokenizers", "template", "norm_placement", "init_rows", "init_seed"),
    ("target", _BACKBONES),
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.convert",
        description=__doc__,
        epilog=_described() if {"-h", "--help"} & set(words) else "",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="source", default="auto", choices=["auto", *LAYOUTS], help="layout of the input")
    add("--to", dest="target", required=True, choices=list(LAYOUTS), help="layout of the output")
    add("--input", required=True, type=Path, help="file or folder to read")
    add("--output", required=True, type=Path, help="folder to make, empty if it exists; codecs join what is there")
    add("--config", default="", help="vqgan and wavtokenizer input: the codec's .yaml (default: beside the .ckpt)")
    add("--dtype", default=KEEP, choices=[KEEP, *DTYPES], help="type of the written weights (default: keep)")
    add("--step", type=int, help="orbax input: which checkpoint (default: the newest)")
    add("--vocabulary", default="", help="chameleon, a tokenizers folder or vocabulary.json: what the ids mean")
    add("--tokenizers", default="", help="name or folder to record for generate; gives the vocabulary too")
    add("--template", default="", choices=["", *TEMPLATE_SETS], help="prompt templates to record")
    add("--norm_placement", default="", choices=["", *NORM_PLACEMENTS], help="override what the input says")
    add("--init_rows", default="", help="new rows for these ids: speech, markers, boa, missing, 12820-12821 ...")
    add("--init_seed", type=int, default=0, help="of the new rows' noise")
    add("--model_parallel_size", type=_positive, help="meta output: number of shards (default: groups of q/k norms)")
    add("--max_shard_size", type=_size, default=5 * 10**9, help="hf and vendored output: such as 5GB (the default)")
    add("--image_tokenizer", default="", help="hf output: this project's image tokenizer to put in as model.vqmodel")
    return parser.parse_args(arguments)


def _described() -> str:
    """All layouts, one a line; asks every layout's module, which ordinary runs need not import."""
    lines = [f"  {name:<14} {layout(name).family}: {layout(name).describe}" for name in LAYOUTS]
    return "\n".join(["layouts (conversion is possible within one family):", *lines])


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give one such as 5GB or 500MB")
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2].upper()])


def convert(options: argparse.Namespace) -> None:
    """Does what the command line says and tells it on stdout; InteropError when it cannot be done."""
    if options.source == "auto":
        source, evidence = detect(options.input)
        print(f"input: {source} ({evidence})")
    else:
        source = options.source
        print(f"input: {source}, as --from says")
        if not options.input.exists():
            raise InteropError(f"--input={options.input} is not there")
    reader, writer = layout(source), layout(options.target)
    if reader.family != writer.family:
        raise InteropError(
            f"{source} is a {reader.family}, {options.target} a {writer.family}; choose --to of the same family"
        )
    _require_meaning(options, source)
    content = reader.load(options.input, options)
    if reader.family == BACKBONE:
        from ar_omni_jax.interop.conversion import describe, prepare

        content = prepare(content, options)
        print(describe(content))
        for note in content.notes:
            print(f"note: {note}", file=sys.stderr if note.startswith("WARNING") else sys.stdout, flush=True)
    for line in writer.save(content, options.output, options):
        print(f"note: {line}")
    print(f"wrote {options.output}")


def _require_meaning(options: argparse.Namespace, source: str) -> None:
    """InteropError naming the options that this conversion would pass over."""
    unset = parse_arguments(["--to=hf", "--input=.", "--output=."])
    lines = [
        f"--{name} means nothing {'from' if end == 'source' else 'to'} {at}: it is for {', '.join(layouts)}"
        for name, (end, layouts) in _MEANT_FOR.items()
        if (at := source if end == "source" else options.target) not in layouts
        and getattr(options, name) != getattr(unset, name)
    ]
    if lines:
        raise InteropError(f"{'; '.join(lines)}. Leave it out")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 1 after an error, or 2 for a wrong command line."""
    options = parse_arguments(arguments)
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells each of its steps
    try:
        convert(options)
    except (InteropError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
