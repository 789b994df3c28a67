"""What one run of every variant answered to the same held-out documents, beside the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ar_omni_jax.ablation.runner import JUDGED, workdir
from ar_omni_jax.evaluation.report import made_files

PICTURES, ANSWERS = 4, 1  # of each variant


def collect(output: Path, variant: str, seed: int, assets: Path) -> dict[str, list[dict]]:
    """Task -> [{"truth", "answer", "file"}] of the first documents; "file" is a copy in `assets`, "" without one."""
    folder = workdir(output, variant, seed)
    results = json.loads((folder / JUDGED).read_text())["systems"]["trained model"]
    found = {}
    for task, result in results.items():
        count = PICTURES if task == "t2i" else ANSWERS
        found[task] = [
            {
                "truth": example.get("truth", ""),
                "answer": example.get("answer", ""),
                "file": _copy(folder / "evaluation" / task, number, assets, variant) if task in ("t2i", "tts") else "",
            }
            for number, example in enumerate(result["examples"][:count])
        ]
    return found


def _copy(folder: Path, number: int, assets: Path, variant: str) -> str:
    made = [file for file in made_files(folder, f"{number:03d}") if file.suffix in (".png", ".wav") and file.is_file()]
    if not made:
        return ""
    name = f"{variant}-{number}{made[0].suffix}"
    shutil.copyfile(made[0], assets / name)
    return f"{assets.name}/{name}"
