#!/usr/bin/env bash
# Installs the project with its test requirements, lints it and runs all tests. Arguments go to pytest:
#   bash launch/run_tests.sh                    everything (what CI runs)
#   bash launch/run_tests.sh tests/model -k hf  a part
# TEST_EXTRAS=test,tfds adds TensorFlow on CPUs, for the tests of TFDS sources, which are skipped without it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh "${TEST_EXTRAS:-test}"
ruff check .
exec python -m pytest "$@"
