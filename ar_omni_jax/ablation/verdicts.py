"""Whether the toy world says what the paper says: the sign of every difference of the paper's Table 7, and the jump of
its Figure 3."""

from __future__ import annotations

from ar_omni_jax.ablation.intervals import decided
from ar_omni_jax.ablation.variants import VARIANTS
from ar_omni_jax.evaluation.toy_tasks import MEASURES

AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "not decided"
PAPER_MEASURES = {"caption": "CIDEr", "t2i": "CLIP score", "asr": "ASR word error", "tts": "TTS word error"}


def verdicts(summary: dict[str, dict]) -> list[dict]:
    """For every variant and measure that the paper has too, whether leaving the part out did here what it did there.

    "paper", "here": "better" or "worse" without the part; "change": the paper's difference in its own unit; "says":
    AGREES or DISAGREES where our interval of the difference leaves out zero and there are two seeds or more, else
    UNDECIDED.
    """
    found = []
    full = VARIANTS["full"].paper
    for name, row in summary.items():
        for task, ours in row["differences"].items() if row["paper"] else ():
            sign = 1 if MEASURES[task][2] else -1  # whether higher is better
            change = row["paper"][task] - full[task]
            paper, here = (_word(sign * x) for x in (change, ours["mean"]))
            says = UNDECIDED if not decided(ours) else AGREES if paper == here else DISAGREES
            said = {"variant": name, "task": task, "paper": paper, "here": here, "change": change, "says": says}
            found.append(said | ours)
    return found


def _word(gain: float) -> str:
    return "better" if gain > 0 else "worse"


def missing(summary: dict[str, dict]) -> list[str]:
    """Variants of the paper that cannot be compared yet: without a run, or without one of the full method's seeds."""
    compared = [name for name, variant in VARIANTS.items() if variant.paper and name != "full"]
    return [name for name in compared if not summary.get(name, {}).get("differences")]


def jump_verdict(summary: dict[str, dict]) -> dict | None:
    """Figure 3: plain next-token prediction jumps late in the training, the full method does not. None without both.

    "says": AGREES when the loss of plain alone jumped, DISAGREES when that of the full method alone did, else
    UNDECIDED; spikes of the gradient and skipped steps are told beside it, and are no jumps. "judged": whether both
    have records that events were looked for in.
    """
    if not {"full", "plain"} <= summary.keys():
        return None
    full, plain = ({k: summary[n]["stability"][k] for k in ("jumps", "spikes", "skipped")} for n in ("full", "plain"))
    ours, theirs = full["jumps"] > 0, plain["jumps"] > 0
    says = UNDECIDED if ours == theirs else AGREES if theirs else DISAGREES
    judged = all(summary[name]["stability"]["records"] for name in ("full", "plain"))
    return {"says": says, "judged": judged, "full": full, "plain": plain}
