"""Being told to stop: Ctrl-C, SIGTERM, a closed terminal, or a notice that the machine is to be taken away."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import urllib.request
from http.client import HTTPException
from typing import Any

import jax

from ar_omni_jax.parallel.agreement import Agreement
from ar_omni_jax.training.progress import say

# Google Compute Engine answers TRUE here from 30 seconds before it takes a preemptible machine away.
GCE_NOTICE = "http://metadata.google.internal/computeMetadata/v1/instance/preempted"
NOTICE_EVERY_S = 2.0


class StopSignal:
    """Remembers the first SIGINT, SIGTERM or SIGHUP so that the loop can save first; the second one ends at once."""

    def __init__(self):
        self.number = 0
        self._received: float | None = None
        self._agreement = Agreement()

    def install(self) -> StopSignal:
        """Listens from now on. A SIGHUP that is ignored (nohup) stays so."""
        self._numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            self._numbers.append(signal.SIGHUP)
        for number in self._numbers:
            signal.signal(number, self._receive)
        return self

    def request(self, number: int) -> None:
        """As if signal `number` had come."""
        if not self.number:
            self.number, self._received = number, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the signal."""
        return 0.0 if self._received is None else time.monotonic() - self._received

    def _receive(self, number: int, _frame: Any) -> None:
        self.request(number)
        for each in self._numbers:
            signal.signal(each, signal.SIG_DFL)
        text = f"{signal.Signals(number).name}: finishing this step and saving (again to quit at once)\n"
        # Not `print`: it is not reentrant, and the signal may have come inside one. A closed terminal takes nothing.
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                os.write(1, text.encode())

    def agreed(self, step: int, every: int) -> bool:
        """Whether to stop after `step`; several processes ask each other, at least at every `every`-th step. The
        number is then the same on all, so that all end with the same code."""
        number = self._agreement(self.number, step, every)
        self.number = number or self.number
        return bool(number)

    def here(self) -> bool:
        """Whether to cut short what only this process is at; always False where others would go on with it."""
        return jax.process_count() == 1 and bool(self.number)


class PreemptionNotice:
    """A thread that asks a page whether the machine is to be taken away, and then stops the run as SIGTERM would.

    Args:
      source: "gce", or an address that answers TRUE; "" does nothing. stop: is asked to stop.
    """

    def __init__(self, source: str, stop: StopSignal, every_s: float | None = None):
        self._url = GCE_NOTICE if source == "gce" else source
        self._stop, self._every, self._ended = stop, every_s or NOTICE_EVERY_S, threading.Event()
        self._thread = threading.Thread(target=self._ask, name="preemption notice", daemon=True)

    def __enter__(self) -> PreemptionNotice:
        if self._url:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def _ask(self) -> None:
        request = urllib.request.Request(self._url, headers={"Metadata-Flavor": "Google"})
        told = False
        while not self._ended.wait(self._every):
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    text = answer.read(64).decode(errors="replace").strip().upper()
            except (OSError, ValueError, HTTPException) as error:  # a page that is away must end neither run nor asking
                if not told:
                    say(f"warning: {self._url} cannot be asked for a preemption notice ({error}); asking on")
                told = True
                continue
            if text == "TRUE":
                say(f"preemption notice of {self._url}: finishing this step and saving")
                self._stop.request(signal.SIGTERM)
                return
