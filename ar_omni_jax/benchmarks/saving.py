"""What a save costs the step loop: its stall, and the steps that run beside a save in the background.

  python -m ar_omni_jax.benchmarks.saving                    # 100 M parameters, some minutes on two cores
  python -m ar_omni_jax.benchmarks.saving --size=toy --every=40

Trains with the shapes of `benchmarks.training` and saves through the saver that training has, every --every steps. The
loop waits for the devices before each save, so all of a stall is time in which nothing is computed: waiting for the
save before, checksums, and the copy out of the state. Then the same saver saves and waits, as it does at a run's end:
what every save would cost if none ran in the background. A step counts as beside a save when one was under way as it
began.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ar_omni_jax.benchmarks import training_work as work
from ar_omni_jax.benchmarks.record import publish
from ar_omni_jax.benchmarks.training_ours import OurStep
from ar_omni_jax.checkpoint import Checkpoints, Description
from ar_omni_jax.machine import machine
from ar_omni_jax.training.saving import Saver

GOAL = 0.05  # of a step


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.benchmarks.saving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--size", choices=sorted(work.SIZES), default="100m", help="shape of the model")
    add("--every", type=int, default=3, help="steps from one save to the next")
    add("--saves", type=int, default=3, help="saves in the background")
    add("--folder", type=Path, help="where checkpoints are written and deleted again (default: the temporary files')")
    add("--output", type=Path, default=Path("saving_benchmark.json"), help="the record")
    options = parser.parse_args(arguments)
    if min(options.every, options.saves) < 1:
        parser.error("--every and --saves must be at least 1")
    return options


class SavedStep(OurStep):
    """The training step of `benchmarks.training`, whose state can be saved."""

    @property
    def state(self):
        return self._state

    def abstract_state(self):
        return self._trainer.abstract_state()

    def describe(self, size: work.Size, step: int) -> Description:
        vocabulary = work.vocabulary_of(size)
        return Description(step, step, {}, vocabulary.to_dict(), vocabulary.fingerprint)

    def __call__(self, batch) -> float:
        loss = super().__call__(batch)
        jax.block_until_ready(self._state)
        return loss


class TimedCheckpoints(Checkpoints):
    """Adds up in `waited` the seconds spent waiting for saves that were under way."""

    waited = 0.0

    def wait(self) -> None:
        start = time.monotonic()
        super().wait()
        self.waited += time.monotonic() - start


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains and saves; see `summary` for what comes of it."""
    size = work.SIZES[options.size]
    count = options.every * (options.saves + 1)
    train = SavedStep(size, count + 1, attention="rowwise")
    batches = [work.packed_batch(size, work.documents(size, step)) for step in range(min(count, 4))]
    checkpoints = TimedCheckpoints(folder / "checkpoints", keep=1)
    checkpoints.restore_latest(train.abstract_state(), lambda description: None)  # as a run begins; there is none
    train(batches[0])  # compiles
    saver = Saver(checkpoints, options.every, 0.0, -1)
    alone, beside, saves = [], [], []
    for step in range(1, count + 1):
        begun_beside = not saver.is_saved(saver.saved_step)
        start = time.monotonic()
        train(batches[step % len(batches)])
        (beside if begun_beside else alone).append(time.monotonic() - start)
        saver.look(step)
        if saver.due(step) and len(saves) < options.saves:
            saver.stall, checkpoints.waited = 0.0, 0.0
            saver.save(train.state, train.describe(size, step))
            saves.append({"stall": saver.stall, "waited": checkpoints.waited})
            say(f"save after step {step}: the loop stood still for {saver.stall:.2f} s")
    checkpoints.wait()
    background = checkpoints.seconds
    saver.look(count)
    saver.stall = 0.0
    saver.save_and_wait(train.state, train.describe(size, count + 1))
    checkpoints.close()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(train.state))
    disk_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    times = {"alone": alone, "beside": beside, "background": background, "waited_for": saver.stall}
    return times | {"saves": saves, "state_bytes": state_bytes, "disk_bytes": disk_bytes}


def summary(times: dict[str, Any]) -> dict[str, Any]:
    """Medians, in seconds and as shares of a step that nothing ran beside."""
    step = statistics.median(times["alone"])
    stalls = [save["stall"] for save in times["saves"]]
    beside = statistics.median(times["beside"]) if times["beside"] else None
    return {
        "step_seconds": step,
        "beside_seconds": beside,
        "beside_share": beside and beside / step - 1.0,
        "stall_seconds": statistics.median(stalls),
        "stall_share": statistics.median(stalls) / step,
        "longest_stall_share": max(stalls) / step,
        "waited_seconds": statistics.median(save["waited"] for save in times["saves"]),
        "background_seconds": times["background"],
        "waited_for_seconds": times["waited_for"],
        "waited_for_share": times["waited_for"] / step,
        "goal_met": max(stalls) / step < GOAL,
    }


def table(record: dict[str, Any]) -> str:
    """For people."""
    m, s, t = record["machine"], record["summary"], record["times"]
    shown = {"steps with no save under way": (s["step_seconds"], "", len(t["alone"]))}
    if t["beside"]:
        shown["steps beside a save"] = (s["beside_seconds"], f"{s['beside_share']:+.1%}", len(t["beside"]))
    shown["stall of a save in the background"] = (s["stall_seconds"], f"{s['stall_share']:.1%}", len(t["saves"]))
    shown["of it, waiting for the save before"] = (s["waited_seconds"], "", len(t["saves"]))
    shown["a save that is waited for"] = (s["waited_for_seconds"], f"{s['waited_for_share']:.1%}", 1)
    sizes = f"state {t['state_bytes'] / 2**20:,.0f} MiB, on disk {t['disk_bytes'] / 2**20:,.0f} MiB"
    lines = [
        f"{record['size']}: {m['processor']}, {m['cores']} cores, load {m['load']}; {record['name']}; {sizes}",
        f"{'':36}{'seconds':>9}{'of a step':>11}{'measured':>10}",
        *(f"{name:36}{seconds:9.3f}{share:>11}{number:10}" for name, (seconds, share, number) in shown.items()),
        f"in the background a save took {s['background_seconds']:.1f} s",
        f"longest stall {s['longest_stall_share']:.1%} of a step; the goal, below {GOAL:.0%}, is "
        f"{'met' if s['goal_met'] else 'not met'}",
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(arguments)
    found = machine()  # its load is the one before this run's own
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        times = measure(options, Path(folder))
    names = {"size": options.size, "every": options.every, "machine": found, "name": f"jax {jax.__version__}"}
    record = names | {"summary": summary(times), "times": times}
    publish(record, table(record), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
