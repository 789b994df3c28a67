"""8 fake CPU devices for every process of the suite: set before anything imports jax."""

import gc
import os
import signal
import sys
from pathlib import Path

# A shell's background job ignores Ctrl-C, one under nohup a closed session, and so would the processes that tests start
# and interrupt.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far more than they compute: level 0 halves the compiler's time.
for _flag, _value in (("--xla_force_host_platform_device_count", 8), ("--xla_backend_optimization_level", 0)):
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()

# Tests whose reference is another package skip without it. In CI that would be a silent hole.
if os.environ.get("CI"):
    import importlib.util

    _wanted = ["torch", "transformers", "pocketsphinx", "espeakng_loader", "jiwer"]
    _extras = os.environ.get("TEST_EXTRAS", "").split(",")
    _wanted += [
        name for extra, name in (("tfds", "tensorflow_datasets"), ("benchmark", "datasets")) if extra in _extras
    ]
    _missing = [name for name in _wanted if importlib.util.find_spec(name) is None]
    if _missing:
        raise RuntimeError(f"CI needs {', '.join(_missing)}: the extras {','.join(_extras)} were not installed whole")
    _compilers = os.environ.get("COMPILERS")
    for _name in ("jax_plugins/xla_cuda12", "libtpu") if _compilers else ():
        if not os.path.isdir(os.path.join(_compilers, _name)):
            raise RuntimeError(f"COMPILERS={_compilers} has no {_name}: launch/run_tests.sh did not install it whole")

# Linux gives a process 65,530 mappings of memory (vm.max_map_count). Compiled programs take a few each, and a compiler
# that gets none crashes: the whole suite in one process came to that.
MAPPINGS = Path("/proc/self/maps")
MANY_MAPPINGS = 20_000


def pytest_runtest_teardown(item, nextitem):
    """Between files, forgets what was compiled where that has become much."""
    if nextitem is None or nextitem.path == item.path or "jax" not in sys.modules or not MAPPINGS.exists():
        return
    if MAPPINGS.read_bytes().count(b"\n") > MANY_MAPPINGS:
        sys.modules["jax"].clear_caches()
        gc.collect()
