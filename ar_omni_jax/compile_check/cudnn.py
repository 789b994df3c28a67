"""Lets JAX's cuDNN attention be traced on a machine without cuDNN.

While tracing, JAX asks the installed cuDNN for its version, to refuse shapes that an old one cannot do. Compiling for
a GPU that is not there needs the target's version instead, which its description has.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from unittest import mock


def cudnn_version(description: str) -> int:
    """major * 10000 + minor * 100 + patch of a target description's `dnn_version_info`; 0 when it has none."""
    match = re.search(r"dnn_version_info\s*\{([^}]*)\}", description)
    found = {name: int(value) for name, value in re.findall(r"(\w+):\s*(\d+)", match[1])} if match else {}
    return found.get("major", 0) * 10000 + found.get("minor", 0) * 100 + found.get("patch", 0)


@contextlib.contextmanager
def pretending(description: str) -> Iterator[None]:
    """Inside, JAX takes cuDNN to be of the version in `description`.

    There is no public way to say so. In a JAX without the private function nothing is changed, and tracing ends in
    JAX's own error that cuDNN is missing.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as private
    except ImportError:
        private = None
    if not hasattr(private, "check_cudnn_version"):
        yield
        return
    with mock.patch.object(private, "check_cudnn_version", lambda: cudnn_version(description)):
        yield
