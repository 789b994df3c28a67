"""Trains in processes that are killed at given moments of a save, for test_killed_saves.py.

    python killed_saves.py FOLDER WIDTH MOMENT...

A moment is a number: before the n-th thing that the save does to the file system from Python; or seconds, such as
0.004s: that long after the save began, wherever the writing threads then are. Without moments the numbers are counted
and printed. Each process is forked from this one, which has imported everything and started nothing.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from fake_run import make_run

from ar_omni_jax.checkpoint import Checkpoints
from ar_omni_jax.training.loop import train

SAVE_OF_STEP = 10
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")


class Killer:
    """Counts what happens to the files under `folder` from the save on, and kills at the right moment."""

    def __init__(self, folder, moment):
        self.folder, self.armed, self.count = str(folder), False, 0
        self.at = int(moment) if moment.isdigit() else 0
        self.after = float(moment[:-1]) if moment.endswith("s") else 0.0

    def arm(self):
        self.armed = True
        if self.after:
            threading.Timer(self.after, self.kill).start()

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def hear(self, event, arguments):
        if self.armed and event in EVENTS and arguments and self.folder in str(arguments[0]):
            self.count += 1
            if self.count == self.at:
                self.kill()


def run(folder, width, moment):
    killer = Killer(folder, moment)
    save = Checkpoints.save

    def armed_save(self, state, description):
        if description.step == SAVE_OF_STEP:
            killer.arm()
        save(self, state, description)
        if description.step == SAVE_OF_STEP:
            self.wait()
            killer.armed = False

    Checkpoints.save = armed_save
    sys.addaudithook(killer.hear)
    train(make_run(folder, width=width, steps=SAVE_OF_STEP + 1, keep_checkpoints=1))
    return killer.count


def main():
    folder, width, moments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    for moment in moments or ["0"]:
        child = os.fork()
        if child == 0:
            count = run(folder / moment, width, moment)
            print(f"{count} events", file=sys.stderr, flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(f"moment {moment}: {'killed' if killed else 'lived'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
