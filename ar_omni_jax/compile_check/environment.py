"""What must be set before JAX starts so that it compiles for a machine that is not there. Imports no JAX."""

from __future__ import annotations

import importlib.util
import os

from ar_omni_jax.compile_check.targets import Target

H200_PLUGINS = "jax-cuda12-plugin jax-cuda12-pjrt"


class EnvironmentMissing(RuntimeError):
    """The compiler for the target is not installed; the message has the command that installs it."""


def prepare(target: Target) -> None:
    """Sets the environment for compiling for `target` on this machine's CPU.

    Raises EnvironmentMissing when the target's compiler is not installed.
    """
    require_compiler(target)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if target.chip.platform == "tpu":
        # No TPU to ask about; and a second process must not stumble over the first one's lock file.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_MIN_LOG_LEVEL": "3"}
        # Without these it complains at length that it is on no TPU.
        quiet = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3", "TPU_LOG_DIR": "disabled"}
        os.environ |= {name: value for name, value in quiet.items() if name not in os.environ}
    else:
        # There is no GPU to try kernels on.
        flags = os.environ.get("XLA_FLAGS", "")
        if "--xla_gpu_autotune_level" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def require_compiler(target: Target) -> None:
    """EnvironmentMissing unless the package that compiles for the target is there."""
    if target.chip.platform == "tpu" and not has_libtpu():
        raise EnvironmentMissing(
            f"compiling for {target.name} needs libtpu, the TPU's compiler, which runs on any x86 Linux machine:\n"
            '  pip install "ar_omni_jax[compile_tpu]"'
        )
    if target.chip.platform == "cuda" and not has_cuda_plugin():
        raise EnvironmentMissing(
            f"compiling for {target.name} needs JAX's CUDA plugin (no GPU, none of its dependencies), of JAX's own "
            f"version:\n  pip install --no-deps {' '.join(f'{name}==JAX_VERSION' for name in H200_PLUGINS.split())}\n"
            "where JAX_VERSION is what python -c 'import jax; print(jax.__version__)' says"
        )


def has_libtpu() -> bool:
    """Can this Python compile for TPUs?"""
    return importlib.util.find_spec("libtpu") is not None or "TPU_LIBRARY_PATH" in os.environ


def has_cuda_plugin() -> bool:
    """Can this Python compile for NVIDIA GPUs?"""
    found = importlib.util.find_spec("jax_plugins")
    return bool(found) and importlib.util.find_spec("jax_plugins.xla_cuda12") is not None
