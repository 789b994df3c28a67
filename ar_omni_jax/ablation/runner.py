"""Runs of a study, one after the other or several side by side: train, evaluate, go on where it was interrupted.

Each run is the commands that a person would give, in processes of their own: OUTPUT/runs/VARIANT/seed-N is the
workdir of the training, with `evaluation/` in it where the study judges its runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ar_omni_jax.ablation.jobs import JobError, Jobs
from ar_omni_jax.ablation.study import ABLATION, Study
from ar_omni_jax.config import changes_on_resume, load_config
from ar_omni_jax.files import only_writer, replace_file

PLAN_FILE = "plan.json"
CONFIG_FILE = "config.json"
JUDGED = "evaluation/evaluation.json"  # written last, so that it says of a run that it is finished
TRAINED = "trained.json"  # the same of a run that is not judged
_PLAN_REMEDY = "remove it, and the command that made the runs writes it again"


class AblationError(ValueError):
    """A study cannot go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
      packed, manifest: the rows to train on; the held-out documents to judge, which a study that judges nothing
        leaves alone.
      variants, seeds: which; seeds count from 0.
      limit: held-out documents a task.
      settings: "--config.key=value" words for every training.
      decoding: words for every evaluation.
      study: what the variants are of.
    """

    packed: Path
    manifest: Path
    variants: tuple[str, ...]
    seeds: int
    limit: int = 64
    settings: tuple[str, ...] = ()
    decoding: tuple[str, ...] = ("--temperature=0.7",)
    study: Study = ABLATION

    def __post_init__(self):
        unknown = [name for name in self.variants if name not in self.study.variants]
        if unknown:
            raise AblationError(f"unknown variants {', '.join(unknown)}; there are {', '.join(self.study.variants)}")
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise AblationError("name each variant once")
        if self.seeds < 1 or self.limit < 2:
            raise AblationError(f"seeds={self.seeds}, limit={self.limit}: at least 1 and 2")
        self._check_settings()
        packing = "pack_shards"
        needed = [(self.packed, packing), (self.packed / "dataset.json", packing), (self.manifest, "toyworld")]
        for path, how in needed if self.study.judged else needed[:2]:
            if not path.exists():
                raise AblationError(f"{path} does not exist; launch/run_local.sh or data_pipelines.{how} makes it")

    def _check_settings(self) -> None:
        own = self.study.own_settings()
        for word in self.settings:
            key, _, value = word.removeprefix("--config.").partition("=")
            # A rate of 0 is 0 times anything: it turns an optimizer off, as for the probe without Muon.
            if key in own and not (key in self.study.scaled and value in ("0", "0.0")):
                raise AblationError(
                    f"{word}: {key} is what the runs differ in, and given for all it would make some of them the same; "
                    "leave it out"
                )

    def comparable(self) -> dict:
        """What must not change between runs that are compared. More variants or seeds may come later, and data may
        be moved or made again: they are known by what they hold."""
        trained = {"packed": _packed_digest(self.packed), "settings": list(self.settings)}
        if not self.study.judged:
            return {"study": self.study.name} | trained
        judged = {"limit": self.limit, "decoding": list(self.decoding)}
        return {"manifest": _digest(self.manifest)} | trained | judged

    def runs(self) -> Iterator[tuple[str, int]]:
        """(variant, seed), all variants of a seed before the next seed: a page of one seed is there early."""
        for seed in range(self.seeds):
            for variant in self.variants:
                yield variant, seed


def workdir(output: Path, variant: str, seed: int) -> Path:
    """Of one run."""
    return output / "runs" / variant / f"seed-{seed}"


def read_plan(output: Path) -> dict:
    """What the runs under `output` have in common, as `Plan.comparable` has it; AblationError for none or a damaged
    one."""
    path = output / PLAN_FILE
    try:
        plan = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise AblationError(f"{path} cannot be read ({error}); {_PLAN_REMEDY}") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("settings"), list):
        raise AblationError(f"{path} is damaged: no settings stand in it; {_PLAN_REMEDY}")
    return plan


def finished(output: Path, variant: str, seed: int) -> bool:
    """Whether everything was done with the run."""
    return any((workdir(output, variant, seed) / mark).is_file() for mark in (JUDGED, TRAINED))


def finished_runs(output: Path, study: Study) -> list[tuple[str, int]]:
    """(variant, seed) of all that is finished, in the study's order, seeds ascending."""
    runs = []
    for variant in study.variants:
        names = (folder.name.removeprefix("seed-") for folder in (output / "runs" / variant).glob("seed-*"))
        seeds = sorted(int(name) for name in names if name.isdecimal())  # seed-0.old is somebody's own
        runs += [(variant, seed) for seed in seeds if finished(output, variant, seed)]
    return runs


def run_all(plan: Plan, output: Path, after_each: Sequence[str] = (), jobs: int = 1) -> None:
    """Does what is left of `plan`.

    Args:
      after_each: a command that runs after every run, and once when nothing is left.
      jobs: runs side by side, each on an even share of the cores.
    Raises AblationError when another study stands in `output`, a run of it was trained with another configuration, or a
    command fails, KeyboardInterrupt when it was interrupted: the trainings save first, and the same call goes on.
    """
    output.mkdir(parents=True, exist_ok=True)
    with only_writer(output):
        _claim(plan, output)
        _check_trainings(plan, output)
        todo = [run for run in plan.runs() if not finished(output, *run)]
        started, done, page = time.monotonic(), 0, threading.Lock()

        def one(run: tuple[int, tuple[str, int]], call) -> None:
            nonlocal done
            number, (variant, seed) = run
            left = (time.monotonic() - started) / done * (len(todo) - done) if done else 0
            eta = f", about {left / 60:.0f} minutes left" if done else ""
            print(f"==> run {number + 1} of {len(todo)}: {variant}, seed {seed}{eta}", flush=True)
            for command in commands(plan, output, variant, seed):
                call(command)
            if not plan.study.judged:
                replace_file(workdir(output, variant, seed) / TRAINED, b"{}\n")
            done += 1
            if after_each:
                with page:
                    crew.call(after_each)  # on all cores, which the page tells

        try:
            crew = Jobs(jobs)
            crew.run_all(list(enumerate(todo)), one)
            if not todo and after_each:
                crew.run_all([after_each], lambda command, _: crew.call(command))
        except JobError as error:
            raise AblationError(str(error)) from error


def commands(plan: Plan, output: Path, variant: str, seed: int) -> list[list[str]]:
    """What is done with one run, as words of a command line: training, and evaluation where the study has one.

    Chance, the tokenizers' ceiling and the judges' own error are the same for all runs: the first one's evaluation
    has them.
    """
    folder = workdir(output, variant, seed)
    train = ["ar_omni_jax.main", f"--config={_config_file(plan)}:{variant}", f"--workdir={folder}"]
    train += [f"--config.data.path={plan.packed}", f"--config.seed={seed}", *plan.settings]
    judge = ["ar_omni_jax.evaluate", f"--checkpoint={folder}", f"--data={plan.manifest}", f"--limit={plan.limit}"]
    judge += [_yardsticks(plan, output, (variant, seed)), f"--output={folder / 'evaluation'}", *plan.decoding]
    return [[sys.executable, "-m", *words] for words in ((train, judge) if plan.study.judged else (train,))]


def _config_file(plan: Plan) -> Path:
    return Path(__file__).parents[2] / "configs" / plan.study.config


def has_yardsticks(judged: Path) -> bool:
    """Whether an evaluation.json, which may be damaged or none, judges more than the trained model."""
    try:
        return len(json.loads(judged.read_text())["systems"]) > 1
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _yardsticks(plan: Plan, output: Path, run: tuple[str, int]) -> str:
    there = any(has_yardsticks(workdir(output, *one) / JUDGED) for one in finished_runs(output, plan.study))
    first = next((one for one in plan.runs() if not finished(output, *one)), run)
    return "--systems=chance,ceiling,truth" if run == first and not there else "--no_baselines"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _packed_digest(packed: Path) -> str:
    """Of the packing's settings, tokenizers and counts by task and modality, without the digests of the tokens: the
    codecs round otherwise on another processor, and a few codes of millions fall to the neighbour."""
    file = packed / "dataset.json"
    try:
        held = json.loads(file.read_text())
        for split in held.get("splits", {}).values():
            for part in ("digest", "shards"):
                split.get("origin", {}).pop(part, None)
    except (ValueError, AttributeError, TypeError) as error:
        raise AblationError(f"{file} is damaged ({error}); data_pipelines.pack_shards makes it again") from None
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:16]


def _check_trainings(plan: Plan, output: Path) -> None:
    """That the configuration files still say what the runs that are there were trained with: a study of two
    configurations would compare them. Runs without a config.json, as older ones were kept, are taken for right."""
    words = [word.removeprefix("--config.").partition("=") for word in plan.settings]
    for variant, seed in plan.runs():
        file = workdir(output, variant, seed) / CONFIG_FILE
        if not file.is_file():
            continue
        try:
            saved = json.loads(file.read_text())
            now = load_config(f"{_config_file(plan)}:{variant}", [("seed", str(seed)), *((k, v) for k, _, v in words)])
            changes = [change for part in changes_on_resume(saved, now.to_dict()) for change in part]
        except (ValueError, AttributeError, TypeError) as error:
            raise AblationError(f"{file} is damaged, or its settings cannot be had again ({error})") from error
        if changes:
            what = "; ".join(changes).replace("in the checkpoint", "then")
            raise AblationError(f"{file}: the run was trained with other settings ({what}); give another --output")


def _claim(plan: Plan, output: Path) -> None:
    path, ours = output / PLAN_FILE, plan.comparable()
    if path.is_file():
        theirs = read_plan(output)
        changed = [name for name in ours if ours[name] != theirs.get(name)]
        if changed:
            was = "; ".join(f"{name} was {theirs.get(name)}, is {ours[name]}" for name in changed)
            raise AblationError(f"{path}: runs of another kind stand there ({was}); give another --output")
    replace_file(path, (json.dumps(ours, indent=1) + "\n").encode())
