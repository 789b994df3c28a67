#!/usr/bin/env bash
# Installs the project with its test requirements, lints it and runs all tests. Arguments go to pytest:
#   bash launch/run_tests.sh                    everything (what CI runs)
#   bash launch/run_tests.sh tests/model -k hf  a part
# TEST_EXTRAS=test,tfds,benchmark (as CI has it) adds TensorFlow on CPUs, for the tests of TFDS sources, and HF datasets,
# the rival reader of the data benchmark; the tests of both are skipped without them.
# COMPILERS=DIR (as CI has it) installs the compilers of H200s and TPUs there, 1 GB, for the tests that compile for machines
# that are not here; they are skipped without them.
# WORKERS=N runs the tests of N files side by side (default: one a core, at most 8; each takes some 4 GB). 0: in one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh "${TEST_EXTRAS:-test}"
if [ -n "${COMPILERS:-}" ]; then
  # Those of this JAX. Without what they depend on: there is no device here.
  wanted=$(python - <<'PYTHON'
from importlib.metadata import requires, version

cuda = [f"{name}=={version('jax')}" for name in ("jax-cuda12-plugin", "jax-cuda12-pjrt")]
tpu = [need.partition(";")[0].strip() for need in requires("jax") if need.startswith("libtpu")]
print(*cuda, *tpu[:1])
PYTHON
  )
  mkdir -p "$COMPILERS"
  COMPILERS=$(cd "$COMPILERS" && pwd)
  export COMPILERS
  if [ "$(cat "$COMPILERS/.installed" 2>/dev/null)" != "$wanted" ]; then
    echo "==> installing the compilers of machines that are not here: $wanted"
    rm -rf "${COMPILERS:?}"/*
    read -ra packages <<<"$wanted"
    python -m pip install --quiet --disable-pip-version-check --no-deps --target "$COMPILERS" "${packages[@]}"
    echo "$wanted" >"$COMPILERS/.installed"
  fi
fi
ruff check .
workers=${WORKERS:-$(python -c 'from ar_omni_jax.machine import cores; print(min(cores(), 8))')}
# The tests of one file share what they have compiled: they stay together.
exec python -m pytest --numprocesses="$workers" --dist=loadfile "$@"
