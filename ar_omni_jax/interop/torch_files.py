"""PyTorch's own files, read without running what is in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ar_omni_jax.interop.errors import InteropError

if TYPE_CHECKING:
    import torch

# Where training programs keep the weights among other things, outermost first.
NESTED = ("state_dict", "model_state_dict", "model")


def require_torch() -> Any:
    """The torch module; InteropError naming the extra that brings it."""
    try:
        import torch
    except ImportError as error:
        raise InteropError(
            f"reading .pth, .bin and .ckpt files needs PyTorch ({error}); install it with "
            'pip install "ar_omni_jax[torch]" (the CPU build is enough)'
        ) from error
    return torch


def is_mapped(path: str | Path) -> bool:
    """Whether a file's tensors are mapped; files of PyTorch before 1.6 are bare pickles, which are read whole."""
    return zipfile.is_zipfile(path)


def read_torch_file(path: str | Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a .pth, .pt or .ckpt file, on the CPU.

    Only tensors and plain containers are unpickled (`weights_only`), so a malicious file is refused and runs nothing.
    Zip archives are mapped, not read: a tensor's bytes enter memory when it is used. Where the weights stand under
    "state_dict" (Lightning), those are returned and the rest of the file is left alone.

    Raises InteropError for a file that is missing, truncated, unsafe, or holds no tensors by name.
    """
    torch = require_torch()
    path = Path(path)
    if not path.is_file():
        raise InteropError(f"{path} is not there; give the path of a .pth or .ckpt file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped(path))
    except pickle.UnpicklingError as error:
        raise InteropError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise InteropError(
            f"{path} is damaged or no PyTorch file ({type(error).__name__}: {_first_line(error)}); download it again"
        ) from error
    return _tensors(path, loaded, torch)


def _refusal(path: Path, message: str) -> str:
    unsafe = re.search(r"nsupported (?:GLOBAL|global|class)\W+(?:GLOBAL )?([\w.]+)", message)
    if unsafe:
        return (
            f"{path} holds more than tensors (it wants {unsafe.group(1)}): loading it could run code, so nothing of "
            "it was loaded. If you trust it, save its state_dict alone with the program that wrote it"
        )
    reason = next((line.strip() for line in message.splitlines() if "nsupported" in line), _first_line(message))
    return f"{path} is damaged or no PyTorch file ({reason[:200]}); nothing of it was loaded"


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _tensors(path: Path, loaded: Any, torch: Any) -> dict[str, torch.Tensor]:
    for key in NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise InteropError(f"{path} holds {type(loaded).__name__}, not tensors by name; is it a checkpoint?")
    # Anole's consolidated.pth has "rope.freqs": None. That is no weight; where one is needed, it is missing.
    loaded = {name: value for name, value in loaded.items() if value is not None}
    bad = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if bad:
        raise InteropError(f"{path}: {', '.join(bad[:5])} is no tensor; give a file that holds a state_dict")
    return loaded
