"""Finds a run's packed data, or makes a small set of its own where the config asks for it."""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from ar_omni_jax.tokenizers.bundle import Tokenizers, load_tokenizers
from data_pipelines.dataset_info import FILE_NAME

TOY_SCENES = 120
SPLITS = ("train", "validation")


class PrepareError(ValueError):
    """There is no data to train on; the message gives the commands that make it."""


def packed_data(config: ConfigDict, workdir: Path, tokenizers: Tokenizers | None) -> Path:
    """The folder of packed shards: config.data.path, or WORKDIR/data/packed, made when config.data.prepare says so."""
    path = Path(config.data.path) if config.data.path else workdir / "data" / "packed"
    if (path / FILE_NAME).is_file():
        return path
    if config.data.path or not config.data.prepare:
        raise PrepareError(_how_to_make(config, path))
    if jax.process_count() > 1:
        raise PrepareError(f"{path} is missing; make it with one process first, or give --config.data.path=DIR")
    if tokenizers is None:
        raise PrepareError("config.data.prepare = 'toyworld' needs tokenizers; set --config.data.tokenizers=toyworld")
    _make_toy_data(config, workdir / "data")
    return path


def _how_to_make(config: ConfigDict, path: Path) -> str:
    name, length = config.data.tokenizers, config.data.length
    return (
        f"no packed data in {path} ({FILE_NAME} is missing). Give --config.data.path=DIR, or make it:\n"
        "  python -m data_pipelines.toyworld --output=TOY --size=4000\n"
        f"  python -m data_pipelines.build_shards --input=TOY/train.jsonl --output=SHARDS --split=train "
        f"--tokenizers={name}\n"
        f"  python -m data_pipelines.build_shards --input=TOY/validation.jsonl --output=SHARDS --split=validation "
        f"--tokenizers={name}\n"
        f"  python -m data_pipelines.pack_shards --input=SHARDS --output={path} --length={length}"
    )


def _make_toy_data(config: ConfigDict, folder: Path) -> None:
    """Scenes, pictures and speech of the toy world as packed rows. Each part goes on where it was interrupted."""
    from data_pipelines.build_shards import build as build_shards
    from data_pipelines.pack_shards import PackOptions, pack
    from data_pipelines.toyworld.build import ToyWorldError, build
    from data_pipelines.toyworld.espeak import SpeechError

    print(f"making a toy data set of {TOY_SCENES} scenes in {folder}", flush=True)
    try:
        build(folder / "toy", TOY_SCENES, 0, 2)
    except (ToyWorldError, SpeechError) as error:
        raise PrepareError(str(error)) from error
    tokenizers = load_tokenizers(config.data.tokenizers)
    for split in SPLITS:
        manifest = folder / "toy" / f"{split}.jsonl"
        options = {"split": split, "template": config.data.template, "quiet": True}
        build_shards("manifest", manifest, folder / "shards", tokenizers, **options)
    pack(folder / "shards", folder / "packed", PackOptions(config.data.length, overlong="drop_counted"))
