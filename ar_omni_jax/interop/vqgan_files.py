"""VQGAN files of the taming-transformers family: Chameleon's `vqgan.ckpt` with its yaml, and HF's `model.vqmodel.*`.

Keys are those of tokenizers/image/model.py, so nothing is renamed: a file's tensors are checked against the shapes of
its configuration, what belongs to the training is left out and counted, and the rest is copied to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from ar_omni_jax.interop import codec_files as files
from ar_omni_jax.interop.errors import InteropError, differences, refuse
from ar_omni_jax.interop.registry import Layout
from ar_omni_jax.tokenizers.image.config import CHAMELEON, VQGANConfig
from ar_omni_jax.tokenizers.image.weights import abstract_model

HF_PREFIX = "model.vqmodel."
PREFIXES = (HF_PREFIX, "vqmodel.")  # of HF transformers' Chameleon and of its codec alone
GROUPS = {"loss.": "discriminator and perceptual network of the codec's training"}
CODEBOOK = "quantize.embedding.weight"
# Settings of `model.params` that decide nothing about codes and pixels.
_INERT = ("lossconfig", "ckpt_path", "ignore_keys", "image_key", "colorize_nlabels", "monitor", "sane_index_shape")
_PARAMS = ("ddconfig", "n_embed", "embed_dim", "remap", *_INERT)
_NO_CONFIG = (
    "the picture's size does not show in the tensors, and these are not the shapes of Chameleon's published codec "
    "(512 pixels); give the codec's settings with --config=FILE.yaml"
)


def published_shapes(config: VQGANConfig) -> dict[str, tuple[int, ...]]:
    """{published key: shape} of the whole codec, encoder to decoder; allocates nothing."""
    shapes = {}
    for path, param in nnx.to_flat_state(abstract_model(config)[1]):
        shape = tuple(param.shape)
        shapes[".".join(map(str, path))] = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
    return shapes


# -- configuration ---------------------------------------------------------------------------------------------
def config_from_yaml(path: Path, notes: list[str]) -> VQGANConfig:
    """The settings under `model.params` (or `params`, or at the top) of a taming-transformers yaml."""
    values = files.read_yaml(path)
    model = values.get("model", values)
    params = files.section(model, path, "params") if isinstance(model, dict) and "params" in model else model
    ddconfig = files.section(params, path, "ddconfig")
    files.require_known(params, _PARAMS, f"{path}: model.params")
    if params.get("remap") is not None:
        raise InteropError(f"{path}: remap renumbers the codes, which this codec does not do; only remap: null is read")
    if ddconfig.get("dropout"):
        notes.append(f"{path}: dropout {ddconfig['dropout']} is of the training; a frozen codec has none")
        ddconfig["dropout"] = 0.0
    missing = [key for key in ("n_embed", "embed_dim") if key not in params]
    missing += [f"ddconfig.{key}" for key in ("ch", "ch_mult", "num_res_blocks", "z_channels", "resolution",
                                              "attn_resolutions") if key not in ddconfig]  # fmt: skip
    refuse(str(path), [f"missing setting: {key}" for key in missing], "Each of them shapes the codec; add it.")
    try:
        return VQGANConfig.from_dict({"ddconfig": ddconfig, "n_embed": params["n_embed"],
                                      "embed_dim": params["embed_dim"]})  # fmt: skip
    except (ValueError, TypeError) as error:
        raise InteropError(f"{path}: {error}") from error


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], source: str, notes: list[str]) -> VQGANConfig:
    """The settings that tensors tell by their shapes; InteropError where they do not tell all of them."""
    try:
        stages = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.down."))
        width = shapes["encoder.conv_in.weight"][0]
        outs = [shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(stages)]
        blocks = {name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}
        n_embed, embed_dim = shapes[CODEBOOK]
        z_channels = shapes["encoder.conv_out.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise InteropError(f"{source} holds no VQGAN of the taming-transformers family ({error} not found)") from error
    attends = any(name.startswith("encoder.down.") and ".attn." in name for name in shapes)
    told = dict(
        ch=width, ch_mult=tuple(out // width for out in outs), num_res_blocks=len(blocks), z_channels=z_channels,
        n_embed=n_embed, embed_dim=embed_dim,
    )  # fmt: skip
    published = {name: getattr(CHAMELEON, name) for name in told}
    if attends or told != published:
        raise InteropError(f"{source}: {', '.join(f'{k} {v}' for k, v in told.items())}; {_NO_CONFIG}")
    notes.append(f"{source}: no yaml; the shapes are those of Chameleon's published codec, whose settings are taken: "
                 f"resolution {CHAMELEON.resolution}, no attention outside the middle")  # fmt: skip
    return CHAMELEON


def yaml_settings(config: VQGANConfig) -> dict[str, Any]:
    """The yaml of `config` as taming-transformers reads it."""
    ddconfig = config.to_dict()["ddconfig"]
    del ddconfig["num_groups"]  # 32 in all published code, so it has no such key
    params = {"embed_dim": config.embed_dim, "n_embed": config.n_embed, "ddconfig": ddconfig}
    params["lossconfig"] = {"target": "taming.modules.losses.DummyLoss"}
    return {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}


# -- the layout ------------------------------------------------------------------------------------------------
def detect(path: Path) -> str | None:
    """Evidence that a file holds a VQGAN and nothing else but its training."""
    if not path.is_file() or path.suffix not in (*files.TORCH_SUFFIXES, ".safetensors"):
        return None
    try:
        names, outside = _own_names(files.read_tensors(path))
    except InteropError:
        return None
    fits = CODEBOOK in names and "encoder.conv_in.weight" in names and not outside
    return f"{CODEBOOK} and encoder.conv_in.weight" if fits else None


def _own_names(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """({name without HF's prefix: tensor}, number of tensors beside the codec's)."""
    for prefix in PREFIXES:
        if f"{prefix}{CODEBOOK}" in tensors:
            inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            return inside, len(tensors) - len(inside)
    return dict(tensors), 0


def read(path: Path, options: Any = None) -> files.ImageWeights:
    """The image codec of a .ckpt (or of HF's files) and its yaml. InteropError names everything that does not fit."""
    notes: list[str] = []
    tensors, outside = _own_names(files.read_tensors(path))
    if outside:
        notes.append(f"{path.name}: not used, the language model around the codec: {outside} tensors (see --from=hf)")
    tensors, left_out = files.without_groups(tensors, GROUPS, path.name)
    notes += left_out
    found, yaml = files.shapes_of(tensors), files.config_file(path, options)
    config = config_from_yaml(yaml, notes) if yaml else config_from_shapes(found, str(path), notes)
    if yaml:
        notes.append(f"{path.name}: settings of {yaml}")
    refuse(str(path), differences(published_shapes(config), found), _remedy(found, yaml))
    weights = files.to_float32(tensors, str(path), notes)
    notes.append(f"{path.name}: {len(weights)} tensors of a VQGAN, each used once")
    return files.ImageWeights(config, weights, path.name, notes)


def _remedy(found: Mapping[str, Any], yaml: Path | None) -> str:
    if not any(name.startswith("decoder.") for name in found):
        return (
            "There is no decoder in it: HF transformers keeps the encoder alone, and pictures could not be drawn. "
            "Take Meta's vqgan.ckpt."
        )
    return f"Do file and settings{f' ({yaml})' if yaml else ''} belong together? Another codec needs its own yaml."


def load(path: Path, options: Any) -> files.Codecs:
    """See `registry.Layout`."""
    weights = read(path, options)
    return files.Codecs(str(path), image=lambda: weights)


def save(loaded: files.Codecs, path: Path, options: Any) -> list[str]:
    """Writes PATH/vqgan.ckpt and PATH/vqgan.yaml."""
    codec = loaded.one("image")
    if codec.config.num_groups != 32:
        raise InteropError(
            f"{codec.source}: this codec normalizes in {codec.config.num_groups} groups of channels, the published "
            "code always in 32: it would read the file and compute something else. Train with num_groups=32 to export"
        )
    target = path / "vqgan.ckpt"
    files.write_torch_and_yaml(target, codec.tensors, yaml_settings(codec.config))
    return [*codec.notes, f"{target} and vqgan.yaml: {len(codec.tensors)} tensors; the training's loss.* are not in it"]


LAYOUT = Layout(
    files.FAMILY, "image codec: vqgan.ckpt with its yaml (taming-transformers, Chameleon)", detect, load, save
)
