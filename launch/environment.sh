# shellcheck shell=bash
# Sourced by the launch scripts. Makes a virtual environment and installs the project into it, once for each
# state of setup.py.
#   usage: . launch/environment.sh EXTRAS
#   VENV    where the environment lives (default: .venv in the checkout)
#   PYTHON  the interpreter it is made with (default: the first of python3.11, python3.12, python3.13, python3 >= 3.11)

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$repository/.venv}

find_python() {
  local candidate candidates=(python3.11 python3.12 python3.13 python3)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "No Python >= 3.11 among: ${candidates[*]}. Install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
  return 1
}

install_project() {
  local extras=$1 python stamp wanted
  stamp=$venv/.installed-$extras
  wanted=$(cksum "$repository/setup.py")
  # pip comes last: without it the environment is missing, or its making was interrupted.
  if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    python=$(find_python) || exit 1
    echo "==> making a virtual environment in $venv ($("$python" --version))"
    "$python" -m venv "$venv"
  fi
  # An editable install points at one checkout: another checkout sharing this environment must point it at itself.
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted $repository" ]; then
    echo "==> installing ar_omni_jax[$extras] (a minute or two on a fresh machine)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "${repository}[$extras]"
    # Only one checkout's install can stand: what other checkouts noted here no longer holds.
    find "$venv" -maxdepth 1 -name '.installed-*' -exec sh -c 'grep -qF -- "$1" "$2" || rm -f "$2"' _ " $repository" {} \;
    echo "$wanted $repository" >"$stamp"
  fi
}

install_project "$1"
venv=$(cd "$venv" && pwd)
export PATH="$venv/bin:$PATH"
