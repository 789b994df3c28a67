"""Flags of the commands that decode: how tokens are picked, and guidance."""

from __future__ import annotations

import argparse
import dataclasses

from ar_omni_jax.decoding.guidance import Guidance
from ar_omni_jax.decoding.strategy import DEFAULT_STRATEGIES, GREEDY, LEAST, MOST, PART_KINDS, Strategy

STRATEGY_FLAGS = ("greedy", "temperature", "top_p", "text_guidance", "image_guidance")


def add_strategy_flags(group: argparse._ActionsContainer) -> None:
    """Those of STRATEGY_FLAGS."""
    add = group.add_argument
    add("--greedy", action="store_true", help="always the likeliest token, whatever the task")
    add("--temperature", type=float, help="of what is sampled (default: each part's own; greedy parts stay greedy)")
    add("--top_p", type=float, help="probability that remains of what is sampled (default: each part's own)")
    add("--text_guidance", type=float, help="scale of the prompt while an image is made (1: none; the paper's 3.07)")
    add("--image_guidance", type=float, help="scale of the prompt's image while an image is made (1: none; 1.15)")


def check_strategy_flags(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a usage error for a value without a meaning."""
    sampled = {name: getattr(options, name) for name in ("temperature", "top_p")}
    given = [name for name, value in sampled.items() if value is not None]
    if options.greedy and given:
        parser.error(f"--{given[0]} is for sampling and does not go with --greedy")
    if options.temperature is not None and not LEAST <= options.temperature <= MOST:
        parser.error(f"--temperature={options.temperature} must be in [{LEAST:g}, {MOST:g}] (or give --greedy)")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        parser.error(f"--top_p={options.top_p} must be in (0, 1]")


def strategies_of(options: argparse.Namespace) -> dict[str | tuple[str, str], Strategy] | None:
    """Strategies over the defaults; None where the flags change nothing."""
    if options.greedy:
        return {kind: GREEDY for kind in PART_KINDS}
    changes = {name: getattr(options, name) for name in ("temperature", "top_p") if getattr(options, name) is not None}
    if not changes:
        return None
    return {k: s if s.greedy else dataclasses.replace(s, **changes) for k, s in DEFAULT_STRATEGIES.items()}


def guidance_of(options: argparse.Namespace) -> Guidance | None:
    """The scales that were given; the other one is 1."""
    scales = {"text_scale": options.text_guidance, "image_scale": options.image_guidance}
    if all(value is None for value in scales.values()):
        return None
    return Guidance(**{name: 1.0 if value is None else value for name, value in scales.items()})
