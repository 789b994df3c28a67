"""The settings of a training run: every key with its default, range and meaning, and how they are read.

A config file defines `get_config(arg="")`, starts from `base_config()` and changes what it needs. A key that is
not in `KEYS`, a value of another type or out of range is a ConfigError that names the key (and its nearest
neighbour), whether it comes from a file or from `--config.key=value`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ar_omni_jax.model.config import DTYPES, NORM_PLACEMENTS, REMAT_POLICIES, ConfigError, TransformerConfig


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting. Its type is the default's; numbers must lie in [low, high], strings in `choices` if given."""

    default: Any
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> Any:
        """`value`, an int made a float where a float is due; ConfigError naming the key otherwise."""
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"config.{name} = {value!r} is of type {type(value).__name__}, must be {kind.__name__}")
        if self.choices and value not in self.choices:
            near = difflib.get_close_matches(value, self.choices, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"config.{name} = {value!r} must be one of {', '.join(self.choices)}{hint}")
        if kind in (int, float):
            inside = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
            if not inside or not math.isfinite(value):
                span = f"[{'-inf' if self.low is None else self.low}, {'inf' if self.high is None else self.high}]"
                raise ConfigError(f"config.{name} = {value!r} is outside {span}")
        return value

    def parse(self, name: str, text: str) -> Any:
        """A command-line word -> a value of this key's type."""
        kind = type(self.default)
        try:
            if kind is bool:
                return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            return kind(text)
        except (KeyError, ValueError):
            expected = "true or false" if kind is bool else kind.__name__
            raise ConfigError(f"--config.{name}={text}: expected {expected}") from None


_MODEL = {
    "num_layers": Key(4, "blocks", 1),
    "d_model": Key(128, "width of the residual stream", 1),
    "num_heads": Key(4, "query heads", 1),
    "num_kv_heads": Key(4, "key and value heads; fewer than num_heads is grouped-query attention", 1),
    "head_dim": Key(32, "width of a head", 2),
    "d_ff": Key(384, "inner width of SwiGLU", 1),
    "norm_placement": Key("swin", "swin: norm after each branch; pre: before it", choices=NORM_PLACEMENTS),
    "norm_eps": Key(1e-5, "epsilon of the RMSNorms", 0.0),
    "rope_theta": Key(10_000.0, "base of the rotary frequencies", 1.0),
    "qk_norm": Key(True, "LayerNorm on queries and keys"),
    "qk_norm_groups": Key(1, "rows of the query/key norms' parameters", 1),
    "tie_embeddings": Key(False, "output matrix = embedding table"),
    "max_length": Key(4096, "longest row the model accepts, tokens", 1),
    "dtype": Key("float32", "of products and the residual stream", choices=DTYPES),
    "param_dtype": Key("float32", "of the stored weights", choices=DTYPES),
    "attention": Key("auto", "attention backend, see docs/attention.md; auto: by platform"),
    "packed_rows": Key(True, "rows may hold several documents"),
    "remat": Key("none", "what the backward pass recomputes", choices=REMAT_POLICIES),
    "scan_layers": Key(True, "compile one block and loop over it"),
}
_DATA = {
    "path": Key("", "folder of packed shards; empty: WORKDIR/data/packed"),
    "prepare": Key("", "toyworld: make a small toy data set when the folder is missing", choices=("", "toyworld")),
    "length": Key(512, "tokens of a packed row", 2),
    "batch_size": Key(16, "rows of a global batch, all micro-batches together", 1),
    "mixture.text": Key(0.5, "share of text-only rows", 0.0),
    "mixture.image": Key(1.0, "share of image-text rows", 0.0),
    "mixture.speech": Key(2.0, "share of speech-text rows", 0.0),
    "stop": Key("repeat", "when the data ends", choices=("first_exhausted", "all_exhausted", "repeat")),
    "response_text_weight": Key(2.0, "loss weight of the text response of ASR and captioning", 0.0),
    "response_image_weight": Key(1.0, "loss weight of the picture that a text or speech asks for", 0.0),
    "response_only": Key(False, "only responses count (instruction tuning)"),
    "segment_weight": Key(1.0, "factor on the loss weights from <-Ins-> to <-Res->", 0.0),
    "tokenizers": Key("toyworld", "name or folder of the tokenizers, or chameleon: that vocabulary alone"),
    "template": Key("paper", "prompt templates", choices=("paper", "released")),
}
_LOSS = {
    "perceptual_weight": Key(0.0, "lambda of the perceptual alignment loss", 0.0),
    "perceptual_depth": Key("codebook", "how deep in the image decoder features are compared"),
    "perceptual_alignment": Key(
        "predicting", "which hidden state stands for a code", choices=("predicting", "reference")
    ),
    "perceptual_scope": Key("all", "which images count", choices=("all", "response")),
    "perceptual_images": Key(4, "images a step that go through the decoder, at depths beyond codebook", 1),
    "z_loss": Key(0.0, "weight of log^2 Z", 0.0),
    "normalize": Key("weights", "divide the loss by the sum of weights or of tokens", choices=("weights", "tokens")),
    "chunk": Key(1024, "tokens of a device whose logits exist at a time; 0: all", 0),
}
_OPTIMIZER = {
    "peak_lr": Key(1e-3, "learning rate after warm-up", 0.0),
    "schedule": Key("linear", "decay after warm-up", choices=("linear", "cosine", "constant")),
    "warmup_fraction": Key(0.05, "of all steps", 0.0, 1.0),
    "b1": Key(0.9, "Adam", 0.0, 1.0),
    "b2": Key(0.999, "Adam", 0.0, 1.0),
    "eps": Key(1e-8, "Adam", 0.0),
    "weight_decay": Key(0.0, "AdamW", 0.0),
    "clip_norm": Key(1.0, "bound on the global gradient norm; 0: off", 0.0),
    "muon_lr": Key(0.0, "rate of Muon on the blocks' matrices; 0: AdamW for all", 0.0),
    "accumulate": Key(1, "micro-batches of a step", 1),
    "moment_dtype": Key("float32", "of Adam's stored moments", choices=("float32", "bfloat16")),
}
_MESH = {
    "data": Key(-1, "devices along the batch, weights replicated; -1: all that are left", -1),
    "fsdp": Key(1, "devices along the batch, weights split", -1),
    "sequence": Key(1, "devices along the row", -1),
    "tensor": Key(1, "devices along heads and feed-forward", -1),
}
_TRAIN = {
    "steps": Key(1000, "optimizer steps", 1),
    "log_every": Key(20, "steps between progress lines", 1),
    "eval_every": Key(200, "steps between validations; 0: never", 0),
    "eval_batches": Key(8, "batches of a validation", 1),
    "sample_every": Key(0, "steps between generated samples; 0: never", 0),
    "checkpoint_every": Key(500, "steps between checkpoints; one is always written at the end", 1),
    "keep_checkpoints": Key(3, "newest checkpoints kept", 1),
    "keep_every": Key(0, "checkpoints at multiples of it are kept for ever; 0: none", 0),
    "max_skipped": Key(20, "skipped steps in a row before giving up", 1),
    "skip_spikes": Key(0.0, "skip steps whose loss or gradient norm is so many deviations above the median; 0: off", 0),
    "hang_exit_s": Key(0.0, "seconds without progress after which the process ends with code 75; 0: never", 0.0),
    "init_from": Key("", "workdir or checkpoint whose weights a new run starts from"),
}
_SECTIONS = (("model", _MODEL), ("data", _DATA), ("loss", _LOSS), ("optimizer", _OPTIMIZER))
_SECTIONS += (("mesh", _MESH), ("train", _TRAIN))
KEYS: dict[str, Key] = {"seed": Key(0, "of initialization, data order and samples", 0)}
KEYS |= {f"{section}.{name}": key for section, keys in _SECTIONS for name, key in keys.items()}

# Keys of the model that change how it is computed, not what it is.
_COMPUTE = {f"model.{k}" for k in ("dtype", "attention", "packed_rows", "remat", "scan_layers", "max_length")}
# Keys that may change between a run and its resumption without a word.
_COURSE = ("steps", "skip_spikes", "init_from")  # keys of `train` that change what is learned
_FREE = {f"train.{k}" for k in _TRAIN if k not in _COURSE} | {f"mesh.{k}" for k in _MESH}
_FREE |= {"data.path", "data.prepare"}
_PARENT = "train.init_from"
# Keys whose change gives the state other arrays: each with what of its value decides which arrays there are.
_ARRAYS = {"optimizer.moment_dtype": str, "loss.perceptual_weight": bool}
_ARRAYS |= {f"optimizer.{k}": bool for k in ("muon_lr", "weight_decay", "clip_norm")}


# ------------------------------------------------------------------------------------------------------- reading


def base_config() -> ConfigDict:
    """All keys at their defaults."""
    return ConfigDict(_nested({name: key.default for name, key in KEYS.items()}))


def load_config(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads "FILE.py" or "FILE.py:ARG", applies overrides ("train.steps", "100") and checks every key.

    Raises ConfigError with the file or the override and the key.
    """
    path, colon, argument = spec.rpartition(":")
    if not colon or Path(spec).is_file():
        path, argument = spec, ""
    config = _read_file(Path(path), argument)
    flat = validate(config, where=path)
    for name, text in overrides:
        if name not in KEYS:
            raise ConfigError(f"--config.{name}={text}: {_unknown(name)}")
        flat[name] = KEYS[name].check(name, KEYS[name].parse(name, text))
    config = ConfigDict(_nested(flat))
    validate(config, where=path)
    config.lock()
    return config


def _read_file(path: Path, argument: str) -> ConfigDict:
    if not path.is_file():
        found = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        near = f"; there are {', '.join(found)}" if found else ""
        raise ConfigError(f"config file {path} does not exist{near}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's file does wrong is told with the file's name
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config returned {type(config).__name__}, must be an ml_collections ConfigDict")
    return config


def validate(config: ConfigDict, where: str = "config") -> dict[str, Any]:
    """Every key as {"train.steps": value}; ConfigError for an unknown, missing, mistyped or impossible one."""
    flat = flatten(config.to_dict() if isinstance(config, ConfigDict) else config)
    for name in flat:
        if name not in KEYS:
            raise ConfigError(f"{where}: {_unknown(name)}")
    missing = [name for name in KEYS if name not in flat]
    if missing:
        raise ConfigError(f"{where}: config.{missing[0]} is missing; start from ar_omni_jax.config.base_config()")
    flat = {name: KEYS[name].check(name, flat[name]) for name in KEYS}
    _check_together(flat)
    return flat


def _check_together(flat: Mapping[str, Any]) -> None:
    if flat["data.length"] > flat["model.max_length"]:
        raise ConfigError(
            f"config.data.length = {flat['data.length']} is longer than config.model.max_length = "
            f"{flat['model.max_length']}"
        )
    if flat["data.batch_size"] % flat["optimizer.accumulate"]:
        raise ConfigError(
            f"config.data.batch_size = {flat['data.batch_size']} is not a multiple of config.optimizer.accumulate = "
            f"{flat['optimizer.accumulate']}"
        )
    if not any(flat[f"data.mixture.{group}"] for group in ("text", "image", "speech")):
        raise ConfigError("config.data.mixture: at least one share must be above 0")
    if sum(flat[f"mesh.{axis}"] == -1 for axis in _MESH) > 1:
        raise ConfigError("config.mesh: only one axis can be -1 (all devices that are left)")
    if 0 in (flat[f"mesh.{axis}"] for axis in _MESH):
        raise ConfigError("config.mesh: an axis of 0 devices makes no mesh; unused axes are 1")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, KEYS, 1, 0.5)
    if not near:  # a right name in the wrong section
        near = [key for key in KEYS if key.split(".")[-1] == name.split(".")[-1]][:1]
    hint = f"did you mean config.{near[0]}?" if near else "python -m ar_omni_jax.main --help lists all keys"
    return f"there is no key config.{name}; {hint}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"steps": 1}} -> {"train.steps": 1}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def describe_keys() -> str:
    """All keys, one a line: name, default, meaning."""
    lines = []
    for name, key in KEYS.items():
        choices = f" [{' | '.join(c or repr(c) for c in key.choices)}]" if key.choices else ""
        lines.append(f"  --config.{name}={key.default!r}  {key.doc}{choices}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ what follows


def model_config(section: Mapping[str, Any], vocab_size: int) -> TransformerConfig:
    """The `model` section and the vocabulary's size -> TransformerConfig."""
    return TransformerConfig(vocab_size=vocab_size, **dict(section))


def derived(config: ConfigDict, model: TransformerConfig) -> dict[str, float]:
    """What follows from the settings: sizes, steps, tokens (padding included) and arithmetic."""
    tokens = config.data.batch_size * config.data.length
    return {
        "parameters": model.parameter_count(),
        "tokens_per_step": tokens,
        "total_steps": config.train.steps,
        "total_tokens": tokens * config.train.steps,
        "warmup_steps": math.ceil(config.optimizer.warmup_fraction * config.train.steps),
        "flops_per_token": model.flops_per_token(config.data.length),
        "total_flops": model.flops_per_token(config.data.length) * tokens * config.train.steps,
    }


def describe_derived(values: Mapping[str, float]) -> str:
    """The derived values as two lines for the start of a run."""
    v = values
    return (
        f"model: {v['parameters']:,} parameters, {_metric(v['flops_per_token'])}FLOP a token of training\n"
        f"run: {v['total_steps']:,} steps ({v['warmup_steps']:,} warm-up) of {v['tokens_per_step']:,} tokens = "
        f"{_metric(v['total_tokens'])}tokens, {_metric(v['total_flops'])}FLOP"
    )


def _metric(value: float) -> str:
    """41.5e9 -> "41.5 G"."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def changes_on_resume(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(refused, warned): what differs between the config of a checkpoint and today's, in words.

    Refused: another model, an optimizer with other arrays, or another run to start from. Warned: what alters the course
    of training (data, loss, optimizer, steps). A key that the checkpoint does not know yet had its default's effect.
    """
    defaults = {name: key.default for name, key in KEYS.items()}
    old, new = defaults | flatten(saved), defaults | flatten(current)
    refused, warned = [], []
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if before == now or name in _FREE or name == _PARENT and _same_parent(before, now):
            continue
        another = name == _PARENT or name.startswith("model.") and name not in _COMPUTE or name == "data.tokenizers"
        another |= name in _ARRAYS and _ARRAYS[name](before) != _ARRAYS[name](now)
        (refused if another else warned).append(f"config.{name}: {before!r} in the checkpoint, {now!r} now")
    return refused, warned


def _same_parent(before: str, now: str) -> bool:
    """Whether a run that began with `train.init_from` = `before` may go on with `now`: none, or the same folder."""
    return not now or bool(before) and os.path.realpath(before) == os.path.realpath(now)
