"""A last word for a process that cannot speak it itself: killed from outside, or aborted in C++."""

from __future__ import annotations

import contextlib
import subprocess


class Witness:
    """A small shell that prints `text` on this process's standard error when the process ends without `dismiss`."""

    def __init__(self, text: str):
        # It reads from a pipe whose other end only this process holds; in a session of its own, for Ctrl-C is not
        # meant for it.
        command = ["/bin/sh", "-c", 'IFS= read -r word || printf "%s\\n" "$1" >&2', "witness", text]
        self._shell: subprocess.Popen | None = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def dismiss(self) -> None:
        """There is nothing to witness any more; more calls do nothing."""
        shell, self._shell = self._shell, None
        if shell is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                shell.communicate(b"well\n", timeout=10)
