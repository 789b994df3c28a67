"""Sections of the config -> frozen dataclasses."""

from __future__ import annotations

import dataclasses


def from_settings(cls, settings, section: str, error):
    """`cls(**settings)` for a dataclass, or `error` naming the keys of `section` that it does not have."""
    if isinstance(settings, cls):
        return settings
    settings = dict(settings)
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise error(f"unknown settings {', '.join(f'{section}.{key}' for key in unknown)}; known: {', '.join(known)}")
    return cls(**settings)
