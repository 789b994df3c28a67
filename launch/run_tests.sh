#!/usr/bin/env bash
# Installs the project with its test requirements, lints it and runs all tests. Arguments go to pytest:
#   bash launch/run_tests.sh                    everything (what CI runs)
#   bash launch/run_tests.sh tests/model -k hf  a part
# TEST_EXTRAS=test,tfds,benchmark (as CI has it) adds TensorFlow on CPUs, for the tests of TFDS sources, and HF datasets,
# the rival reader of the data benchmark; the tests of both are skipped without them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh "${TEST_EXTRAS:-test}"
ruff check .
exec python -m pytest "$@"
