"""What a user may ask of a source beside its path: which tasks pairs become, in which ratio, and column names."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.vocabulary import Modality

# Tasks that a pair of text and one medium can serve.
PAIR_TASKS = {Modality.IMAGE: ("caption", "t2i"), Modality.SPEECH: ("asr", "tts")}
COLUMNS = ("media", "text", "id")

_KNOWN = tuple(task for tasks in PAIR_TASKS.values() for task in tasks)


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """Options of a source; checked on construction, DocumentError in words.

    Attributes:
      tasks: (task, weight) of what pairs become; those of the other kind of media are passed over. Empty: both
        tasks of the pair's kind in equal parts.
      instructions: paraphrases of the tasks' instructions instead of the template's one.
      prompt_dropout: share in [0, 1] of t2i and caption documents whose prompt text is left out, for
        classifier-free guidance; 0.05 is usual.
      seed: of the three lots above.
      columns: (what, column) for tables: what is of COLUMNS. Empty: found by type and by usual names.
    """

    tasks: tuple[tuple[str, float], ...] = ()
    instructions: bool = False
    prompt_dropout: float = 0.0
    seed: int = 0
    columns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        names = [task for task, _ in self.tasks]
        for task, weight in self.tasks:
            if task not in _KNOWN:
                raise DocumentError(f"tasks: {task!r} is no task of a pair; choose from {', '.join(_KNOWN)}")
            if not (math.isfinite(weight) and weight > 0):
                raise DocumentError(f"tasks: weight {weight!r} of {task} must be a positive number")
        _check_once("tasks", names)
        if not 0 <= self.prompt_dropout <= 1:
            raise DocumentError(f"prompt_dropout {self.prompt_dropout!r} must lie in [0, 1]; 0.05 is usual")
        for what, column in self.columns:
            if what not in COLUMNS or not column:
                raise DocumentError(f"columns: {what}:{column} is not one of {', '.join(COLUMNS)} with a column's name")
        _check_once("columns", [what for what, _ in self.columns])

    def column(self, what: str) -> str | None:
        """The column that the user named for `what` of COLUMNS, if any."""
        return dict(self.columns).get(what)

    def refuse(self, source: str, *names: str) -> None:
        """DocumentError when one of these options is set: `source` has no use for it, and that must not go unseen."""
        given = [name for name in names if getattr(self, name) != getattr(NO_OPTIONS, name)]
        if given:
            raise DocumentError(f"source {source} does not take {', '.join('--' + g for g in given)}; leave it out")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "tasks": dict(self.tasks),
            "instructions": self.instructions,
            "prompt_dropout": self.prompt_dropout,
            "seed": self.seed,
            "columns": dict(self.columns),
        }


def _check_once(option: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DocumentError(f"{option}: {name} is given twice")


NO_OPTIONS = SourceOptions()


def parse_options(
    tasks: str = "", instructions: bool = False, prompt_dropout: float = 0.0, seed: int = 0, columns: str = ""
) -> SourceOptions:
    """Options from the words of a command line: tasks "caption:1,t2i:3", columns "media:audio,text:sentence"."""
    weights = []
    for task, weight in _parse_pairs("tasks", tasks, "caption:1,t2i:3"):
        try:
            weights.append((task, float(weight or 1)))
        except ValueError as e:
            raise DocumentError(f"tasks: weight {weight!r} of {task} is no number; write it as caption:1,t2i:3") from e
    named = tuple(_parse_pairs("columns", columns, "media:audio,text:sentence"))
    return SourceOptions(tuple(weights), instructions, prompt_dropout, seed, named)


def _parse_pairs(option: str, text: str, example: str) -> list[tuple[str, str]]:
    out = []
    for item in text.split(",") if text.strip() else ():
        name, _, value = (piece.strip() for piece in item.partition(":"))
        if not name:
            raise DocumentError(f"{option}: {item!r} has no name; write --{option}={example}")
        out.append((name, value))
    return out
