"""A `gcloud` of files: it writes down every call and plays what a test has laid out for it.

FAKE/calls        one line a call
FAKE/life.N       states of the N-th resource that is created, one a line; each look takes one, the last one stays;
                  AWAY: the cloud does not answer
FAKE/current      states left of the resource that exists now; absent: there is none
FAKE/train.N      shell text played by the N-th `train` on the hosts; default: two hosts that end with code 0
FAKE/status       what the hosts answer to `status`
FAKE/refuse       text of the error with which `create` fails
FAKE/stop.hangs   hosts do not stop when asked
FAKE/setup.fails  how many times installing fails yet
FAKE/hosts.fails  how many times counting a node's hosts fails yet
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

GCLOUD = r"""#!/usr/bin/env bash
cd "$FAKE"
printf '%s\n' "$*" >>calls
next() { # counts what happens
  n=$(($(cat "$1.count" 2>/dev/null || echo 0) + 1))
  echo "$n" >"$1.count"
}
case "$*" in
  *"tpu-vm describe"*)
    left=$(cat hosts.fails 2>/dev/null || echo 0)
    if [ "$left" -gt 0 ]; then
      echo $((left - 1)) >hosts.fails
      echo "ERROR: 503 the service is away for a moment" >&2
      exit 1
    fi
    echo 2
    ;;
  *"queued-resources create"*)
    if [ -e refuse ]; then cat refuse >&2; exit 1; fi
    next lives
    if [ -e "life.$n" ]; then cp "life.$n" current; else echo ACTIVE >current; fi
    echo run >label
    ;;
  *"queued-resources delete"*)
    if [ ! -e current ]; then echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1; fi
    rm current
    ;;
  *"queued-resources describe"*)
    if [ -e denied ]; then echo "ERROR: PERMISSION_DENIED: no access" >&2; exit 1; fi
    if [ ! -e current ]; then echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1; fi
    case "$*" in
      *labels*) cat label 2>/dev/null ;;
      *yaml*) echo "error: no more capacity" ;;
      *)
        now=$(head -1 current)
        if [ "$(wc -l <current)" -gt 1 ]; then sed -i 1d current; fi
        if [ "$now" = AWAY ]; then echo "ERROR: 503 the service is away for a moment" >&2; exit 1; fi
        echo "$now"
        ;;
    esac
    ;;
  *"queued-resources scp"*) ;;
  *"tpu_worker.sh setup"*)
    left=$(cat setup.fails 2>/dev/null || echo 0)
    if [ "$left" -gt 0 ]; then
      echo $((left - 1)) >setup.fails
      echo "worker 1: Connection refused" >&2
      exit 255
    fi
    ;;
  *"tpu_worker.sh status"*) cat status 2>/dev/null ;;
  *"tpu_worker.sh stop"*)
    if [ -e stop.hangs ]; then sleep 600; fi
    touch stopped
    printf 'status h%s ended 143\n' 0 1 >status
    ;;
  *"tpu_worker.sh train"*)
    next train
    if [ -e "train.$n" ]; then . "./train.$n"; exit; fi
    printf '[h%s] step 1\n' 0 1
    printf 'status h%s ended 0\n' 0 1 >status
    ;;
  *) echo "the fake gcloud knows nothing of: $*" >&2; exit 99 ;;
esac
"""


class Cloud:
    """The fake and the script that is tried on it."""

    def __init__(self, folder: Path):
        self.folder = folder / "cloud"
        self.folder.mkdir()
        self.logs = folder / "logs"
        programs = folder / "programs"
        programs.mkdir()
        (programs / "gcloud").write_text(GCLOUD)
        (programs / "gcloud").chmod(0o755)
        self.path = f"{programs}{os.pathsep}{os.environ['PATH']}"

    def plan(self, **files: str) -> None:
        """FAKE/NAME with that text; `life_1` is life.1."""
        for name, text in files.items():
            (self.folder / name.replace("_", ".")).write_text(text)

    def environment(self, **variables) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if k in ("HOME", "TMPDIR", "LANG", "USER")}
        settings = {"PROJECT": "p", "ZONE": "z-a", "ACCELERATOR_TYPE": "v5p-16", "WORKDIR": "gs://bucket/run"}
        settings |= {"NAME": "job", "LOGS": self.logs, "POLL": "0.05", "STOP_SECONDS": "5"}
        settings |= {"BRANCH": "main", "REPOSITORY": "https://host/x.git"}  # packing the checkout takes longer
        settings |= {"CONFIG": "configs/smoke.py", "PATH": self.path, "FAKE": self.folder} | variables
        return keep | {k: str(v) for k, v in settings.items() if v is not None}

    def run(self, script: Path, *arguments: str, **variables) -> subprocess.CompletedProcess:
        command = ["bash", script, *arguments]
        return subprocess.run(command, env=self.environment(**variables), capture_output=True, text=True, timeout=120)

    def start(self, script: Path, *arguments: str, **variables) -> subprocess.Popen:
        """In a session of its own, so that a signal can be given to the script as a terminal would: to its group."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(
            ["bash", script, *arguments], env=self.environment(**variables), start_new_session=True, **pipes
        )

    def calls(self, *words: str) -> list[str]:
        """Calls that contain all `words`."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if all(word in line for word in words)]

    def wait_for(self, *words: str, times: int = 1, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if len(self.calls(*words)) >= times:
                return
            time.sleep(0.02)
        raise AssertionError(f"fewer than {times} calls with {words} in {self.calls()}")

    @property
    def exists(self) -> bool:
        """Whether there is a resource that costs money."""
        return (self.folder / "current").exists()


def control_c(process: subprocess.Popen) -> None:
    """SIGINT to the process's whole group, as a terminal sends it."""
    os.killpg(process.pid, signal.SIGINT)
