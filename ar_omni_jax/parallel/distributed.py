"""Several processes as one run: joining, knowing when one is lost, and ending together.

A process that waits for a collective of a lost one waits for ever on most hardware, and what JAX says after its own
time-out names a number. So every process puts a sign of life into the store of JAX's coordination service every few
seconds; process 0 watches them and says which host is silent; a process that ends with an error says so itself. The
others end with that message and the code LOST (try again) or FAILED (an error that would come again).

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   place of a process where nothing else tells it
  AR_OMNI_JOIN_SECONDS   how long processes wait for each other at the start (300)
  AR_OMNI_LOST_SECONDS   how long a process may be silent before it counts as lost (60)
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from ar_omni_jax.parallel.witness import Witness

LOST, FAILED = 75, 1  # 75: EX_TEMPFAIL of sysexits.h
LOOKS = 12  # at a process's sign of life, all of them in vain, before it counts as lost
PREFIX = "ar_omni"


class HostError(RuntimeError):
    """Processes that do not find each other; the message says what is missing and what to set."""


def seconds(name: str, default: float) -> float:
    """A positive number of seconds from the environment; HostError otherwise."""
    text = os.environ.get(name, "") or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise HostError(f"{name}={text}: give a positive number of seconds")
    return value


def join() -> None:
    """Connects this process with the others, as the environment says; HostError when that cannot be."""
    limit = seconds("AR_OMNI_JOIN_SECONDS", 300)
    named = {name: os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
    place = {}
    if all(named.values()):
        try:
            count, index = (int(text) for text in named.values())
        except ValueError:
            raise HostError(f"{named}: give two whole numbers") from None
        place = {"num_processes": count, "process_id": index}
        if os.environ.get("JAX_COORDINATOR_ADDRESS"):
            place["cluster_detection_method"] = "deactivate"
    with contextlib.suppress(AttributeError):  # it would swallow a SIGTERM that comes before training listens
        jax.config.update("jax_enable_preemption_service", False)
    nobody = (
        f"the processes did not find each other within {limit:.0f} s. Was the command started on every host, and do "
        "the hosts reach process 0?"
    )
    witness = Witness(f"error: {nobody} (or this one was ended from outside)")  # JAX aborts then, in C++
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=int(limit),
            # A second line behind this module's own watch.
            heartbeat_timeout_seconds=int(max(100, 2 * seconds("AR_OMNI_LOST_SECONDS", 60))),
        )
    except ValueError as error:
        raise HostError(
            f"--distributed found no cluster ({error}). On Cloud TPU, under srun and under mpirun it needs nothing; "
            "elsewhere set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES=N and JAX_PROCESS_ID=0..N-1 "
            "for each process"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise HostError(f"{nobody} ({_first_line(error)})") from error
    finally:
        witness.dismiss()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Joins; inside, the loss of any process ends this one; at the end all leave together.

    An exception inside is told to the others, which end as well, and this process then ends without waiting for them.
    """
    join()
    try:
        peers = Peers()
    except BaseException:
        atexit.register(_exit_now, LOST)  # as below
        raise
    try:
        yield
    except BaseException as error:
        peers.failed(error)
        # Before JAX's own clean-up, which would wait minutes for processes that are gone.
        atexit.register(_exit_now, 130 if isinstance(error, KeyboardInterrupt) else FAILED)
        raise
    peers.leave()


class Peers:
    """The other processes of this run, watched by a thread."""

    def __init__(self):
        from jax._src import distributed  # the store has no public door; Orbax takes the same way

        # Not `jax.process_index`: it starts the devices, which wait minutes for a process that is gone.
        joined = distributed.global_state
        self.client, self.index, self.count = joined.client, joined.process_id, joined.num_processes
        self.limit = seconds("AR_OMNI_LOST_SECONDS", 60)
        self.pause = self.limit / LOOKS
        self.name = f"process {self.index} of {self.count} ({socket.gethostname()}, pid {os.getpid()})"
        self.ending = threading.Event()
        self._seen: dict[str, tuple[str | None, int]] = {}  # key: the last beat, and looks since it changed
        self._put(f"name/{self.index}", self.name)
        self._put(f"beat/{self.index}", "0")
        self.names = self._meet()
        print(f"{self.name}: all {self.count} processes are here; the first is {self.names[0]}", flush=True)
        self._witness = self._start_witness()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def _meet(self) -> dict[int, str]:
        """Names of all processes by number, once all are here; HostError when one was lost since it joined."""
        here: dict[int, str] = {}
        try:
            self.client.wait_at_barrier(f"{PREFIX}/names", int(1000 * seconds("AR_OMNI_JOIN_SECONDS", 300)))
            here = self._named()
            # The first collective while all are at one place: on CPUs its set-up waits for nobody longer than 30 s.
            multihost_utils.sync_global_devices("together")
        except jax.errors.JaxRuntimeError as error:
            with contextlib.suppress(Exception):  # the store may be gone with process 0
                here = self._named()
            lost = ", ".join(str(i) for i in range(self.count) if i not in here) or "one"
            raise HostError(
                f"process {lost} of {self.count} was lost between joining and the start of the run; its own log says "
                f"why, and the same command starts again ({_first_line(error)})"
            ) from error
        return here

    def _named(self) -> dict[int, str]:
        return {int(key.rsplit("/", 1)[1]): name for key, name in self._all("name")}

    # -- the store -------------------------------------------------------------------------------------------
    def _put(self, key: str, value: str) -> None:
        self.client.key_value_set(f"{PREFIX}/{key}", value, allow_overwrite=True)

    def _all(self, folder: str) -> list[tuple[str, str]]:
        return self.client.key_value_dir_get(f"{PREFIX}/{folder}/")

    def _verdict(self) -> dict | None:
        """What ended the run, as {"code", "text", "process"}, if a process has said so."""
        found = self._all("end")
        return json.loads(found[0][1]) if found else None

    def _announce(self, code: int, text: str) -> None:
        with contextlib.suppress(Exception):  # the store may be gone with process 0
            # The first word counts; the key is set once.
            verdict = {"code": code, "text": text, "process": self.index}
            self.client.key_value_set(f"{PREFIX}/end/verdict", json.dumps(verdict))

    # -- watching --------------------------------------------------------------------------------------------
    def _watch(self) -> None:
        beat = unanswered = 0
        while not self.ending.wait(self.pause):
            beat += 1
            try:
                self._put(f"beat/{self.index}", str(beat))
                if self.index == 0:
                    self._look_for_silence()
                verdict = self._verdict()
            except Exception as error:
                unanswered += 1
                if unanswered > LOOKS and not self.ending.is_set():
                    self._end(LOST, f"lost {self.names[0]}, which the others meet at: {_first_line(error)}")
                continue
            unanswered = 0
            if verdict and verdict["process"] != self.index and not self.ending.is_set():
                self._end(verdict["code"], verdict["text"])

    def _look_for_silence(self) -> None:
        # Looks are counted, not seconds: where all are suspended and go on together, nobody is lost.
        for key, beat in self._all("beat"):
            before, looks = self._seen.get(key, (None, 0))
            self._seen[key] = beat, looks + 1 if beat == before else 0
        lost = sorted(int(key.rsplit("/", 1)[1]) for key, (_, looks) in self._seen.items() if looks >= LOOKS)
        if lost and not self.ending.is_set():
            who = ", ".join(self.names[i] for i in lost)
            text = f"lost {who}: no sign of life for {LOOKS * self.pause:.0f} s"
            self._announce(LOST, text)
            self._end(LOST, text)

    def _end(self, code: int, text: str) -> None:
        """Ends this process from the watching thread: the main one may wait in a collective for ever."""
        advice = "the same command resumes from the last checkpoint" if code == LOST else "see its own log"
        sys.stdout.flush()
        print(f"error: {self.name} ends: {text}; {advice}", file=sys.stderr, flush=True)
        if self.index == 0:
            time.sleep(2 * self.pause)  # the store goes with this process: until the others have read it
        self._dismiss_witness()
        os._exit(code)

    # -- the ends --------------------------------------------------------------------------------------------
    def failed(self, error: BaseException) -> None:
        """Tells the others of an error here. When it may be another's loss that shows here, looks for that first."""
        if _from_runtime(error):
            print(f"{_first_line(error)}\nlooking whether another process is lost ...", file=sys.stderr, flush=True)
            self._thread.join(2 * self.limit)  # it ends this process when it finds one
        self._announce(FAILED, f"{self.name} failed: {_first_line(error)}")
        if self.index == 0:
            time.sleep(2 * self.pause)  # as in `_end`
        self.ending.set()
        self._dismiss_witness()

    def leave(self) -> None:
        """Waits for the others, then ends the watch: nobody leaves while another still works."""
        with contextlib.suppress(Exception):
            self.client.wait_at_barrier(f"{PREFIX}/leave", int(3600e3))
        self.ending.set()
        self._thread.join(30)
        self._dismiss_witness()

    def _start_witness(self) -> Witness | None:
        """When process 0 goes, JAX aborts the others in C++ within milliseconds."""
        if self.index == 0:
            return None
        return Witness(
            f"error: {self.name} was ended from outside or by JAX. Where JAX speaks of the coordination service above: "
            f"lost {self.names[0]}, which the others meet at; the same command resumes from the last checkpoint"
        )

    def _dismiss_witness(self) -> None:
        if self._witness is not None:
            self._witness.dismiss()


def _from_runtime(error: BaseException | None) -> bool:
    """Whether an error of JAX's runtime lies below: a broken connection shows as one."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _exit_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
