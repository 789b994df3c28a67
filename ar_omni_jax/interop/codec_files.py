"""What the codecs' layouts share: the data that passes between them, tensors read strictly, files written whole."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.interop.errors import SHOWN, InteropError, refuse
from ar_omni_jax.interop.safetensors_io import SafetensorsReader
from ar_omni_jax.interop.torch_files import read_torch_file
from ar_omni_jax.interop.torch_writer import TorchWriter
from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig

FAMILY = "codec"
TORCH_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin")
_WIDENED = ("float16", "bfloat16")


@dataclasses.dataclass
class ImageWeights:
    """A VQGAN: {published key: float32 array}, convolutions [out, in, k, k]. `notes` are lines for the user."""

    config: VQGANConfig
    tensors: dict[str, np.ndarray]
    source: str
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class SpeechWeights:
    """A speech codec: {own name: float32 array} as `tokenizers.speech.weights` names them."""

    config: SpeechCodecConfig
    tensors: dict[str, np.ndarray]
    source: str
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Codecs:
    """What a layout of the family "codec" loads: an image codec, a speech codec or both, each read when asked for."""

    source: str
    image: Callable[[], ImageWeights] | None = None
    speech: Callable[[], SpeechWeights] | None = None

    def one(self, kind: str) -> ImageWeights | SpeechWeights:
        """The "image" or "speech" codec; InteropError when the input holds none."""
        make = getattr(self, kind)
        if make is None:
            raise InteropError(f"{self.source} holds no {kind} codec, which --to asks for; choose the other --to")
        return make()


# -- reading ---------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its shape, its dtype's name, and `read`, which gives it as a float32 array."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a .ckpt/.pth/.pt/.bin file, a .safetensors file, or a folder of the latter.

    Nothing but tensors is unpickled, and a tensor's bytes are read when it is used. InteropError for all else.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise InteropError(f"{path} has no .safetensors file; give the codec's .ckpt file itself")
    elif path.suffix == ".safetensors":
        files = [path]
    else:
        return {
            name: Tensor(tuple(t.shape), str(t.dtype).removeprefix("torch."), functools.partial(_copied, t))
            for name, t in read_torch_file(path).items()
        }
    tensors: dict[str, Tensor] = {}
    for file in files:
        reader = SafetensorsReader(file)
        twice = sorted(reader.shapes.keys() & tensors.keys())
        if twice:
            raise InteropError(f"{file}: {twice[0]} is in another file of {path} too; keep one of them")
        for name, shape in reader.shapes.items():
            read = functools.partial(_widened, reader, name)
            tensors[name] = Tensor(shape, reader.dtypes[name], read)
    return tensors


def _copied(tensor: Any) -> np.ndarray:
    return np.array(tensor.detach().float().numpy())  # the tensor is a view of the mapped file


def _widened(reader: SafetensorsReader, name: str) -> np.ndarray:
    return reader.get(name).astype(np.float32, copy=False)


def without_groups(
    tensors: Mapping[str, Tensor], groups: Mapping[str, str], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors in no group, a line a group that says how many were left out and why).

    groups: {prefix or whole name: what these tensors are}.
    """
    kept, counts = {}, dict.fromkeys(groups, 0)
    for name, tensor in tensors.items():
        group = next((g for g in groups if name == g or (g.endswith(".") and name.startswith(g))), None)
        if group is None:
            kept[name] = tensor
        else:
            counts[group] += 1
    by_reason: dict[str, list[str]] = {}
    for group, count in counts.items():
        if count:
            by_reason.setdefault(groups[group], []).append(f"{count} {group}{'*' if group.endswith('.') else ''}")
    return kept, [f"{source}: not used, {reason}: {', '.join(found)}" for reason, found in by_reason.items()]


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def to_float32(tensors: Mapping[str, Tensor], source: str, notes: list[str]) -> dict[str, np.ndarray]:
    """Tensors as float32 arrays. Half precision is widened, which is exact, and `notes` says that codes differ.

    InteropError naming every tensor that is of another dtype or has NaN or infinite values.
    """
    bad, widened, arrays = [], {}, {}
    for name, tensor in tensors.items():
        if tensor.dtype in _WIDENED:
            widened[tensor.dtype] = widened.get(tensor.dtype, 0) + 1
        elif tensor.dtype != "float32":
            bad.append(f"wrong dtype: {name} is {tensor.dtype}, must be float32 (float16 and bfloat16 are widened)")
            continue
        arrays[name] = tensor.read()
        if not np.isfinite(arrays[name]).all():
            bad.append(f"not finite: {name} has NaN or infinite values")
    more = [f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    refuse(source, bad[:SHOWN] + more, "Take the file as it was published, or save the weights again as float32.")
    for dtype, count in widened.items():
        notes.append(
            f"{source}: WARNING {count} tensors are {dtype}; they are widened to float32, but the codes will differ "
            "from those of the float32 weights, and data made with either must not be mixed"
        )
    return arrays


# -- YAML ------------------------------------------------------------------------------------------------------
def config_file(path: Path, options: Any) -> Path | None:
    """The YAML file: --config, or the input's own name with .yaml beside it, or None."""
    given = getattr(options, "config", None)
    if given:
        if not Path(given).is_file():
            raise InteropError(f"--config={given} is not there; give the codec's .yaml file")
        return Path(given)
    beside = path.with_suffix(".yaml")
    return beside if path.is_file() and beside.is_file() else None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file; plain data alone is read, tags of Python objects are refused."""
    yaml = _yaml()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InteropError(f"{path} is no plain YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(values, dict):
        raise InteropError(f"{path} holds {type(values).__name__}, not settings by name; is it the codec's .yaml?")
    return values


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:  # it comes with flax; only a stripped installation lacks it
        raise InteropError('reading and writing .yaml files needs PyYAML: pip install "pyyaml"') from error
    return yaml


def section(values: Mapping[str, Any], path: Path, *keys: str) -> dict[str, Any]:
    """values[k1][k2]... as a dict; InteropError naming the first key that is not there."""
    at: Any = values
    for i, key in enumerate(keys):
        if not isinstance(at, Mapping) or not isinstance(at.get(key), Mapping):
            raise InteropError(f"{path}: {'.'.join(keys[: i + 1])} is missing; is it the codec's own .yaml?")
        at = at[key]
    return dict(at)


def require_known(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """InteropError naming all keys of `values` that are not known, each with the nearest known one."""
    known = list(known)
    lines = []
    for key in sorted(set(map(str, values)) - set(known)):
        near = difflib.get_close_matches(key, known, 1, 0.5)
        lines.append(f"unknown key: {key}" + (f" (nearest: {near[0]})" if near else ""))
    refuse(where, lines, "A setting that is not understood could change the codes; remove it if it does not.")


# -- writing ---------------------------------------------------------------------------------------------------
def require_free(*paths: Path) -> None:
    """InteropError naming the files that are there already."""
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise InteropError(f"--output: {' and '.join(there)} would be replaced; remove it or choose another folder")


def write_torch_and_yaml(path: Path, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> None:
    """`path` = {"state_dict": tensors} for `torch.load(weights_only=True)`, and beside it .yaml = settings.

    Both are written in full under temporary names first, so that a crash leaves no part of a file.
    """
    yaml = _yaml()
    require_free(path, path.with_suffix(".yaml"))
    path.parent.mkdir(parents=True, exist_ok=True)
    specs = {name: (array.shape, array.dtype.name) for name, array in tensors.items()}
    targets = (path, path.with_suffix(".yaml"))
    temporary = {target: target.with_name(f".{target.name}.{os.getpid()}.tmp") for target in targets}
    try:
        writer = TorchWriter(temporary[path], specs, under="state_dict")
        for name, array in tensors.items():
            writer.write(name, array)
        writer.close()
        text = yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=None)
        temporary[targets[1]].write_text(text, encoding="utf-8")
        for file in temporary.values():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        for target, file in temporary.items():
            os.replace(file, target)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
