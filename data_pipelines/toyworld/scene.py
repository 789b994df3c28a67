"""Scenes of the toy world: what is in a picture, how one is drawn by lot, and which split it belongs to.

A scene is one to three objects on a three-by-three grid over a plain background. Objects of one scene have different
colours and different places, so a colour names an object without doubt and neighbours never melt together.
"""

import dataclasses
import hashlib
import random

SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
POSITIONS = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

# sRGB. The nearest two, orange and yellow, are 86 apart; no colour is nearer than 98 to a background (purple, gray).
COLORS = {
    "red": (215, 30, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 225),
    "yellow": (250, 220, 50),
    "purple": (155, 50, 180),
    "orange": (250, 135, 40),
}
BACKGROUNDS = {"white": (245, 245, 245), "black": (15, 15, 15), "gray": (128, 128, 128)}

OBJECT_COUNT_WEIGHTS = (0.5, 0.35, 0.15)  # of one, two and three objects
SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.1  # of the space of scenes, for each of validation and test


@dataclasses.dataclass(frozen=True, order=True)
class SceneObject:
    """One object. An attribute is None where a text or a picture did not say it."""

    shape: str | None
    color: str | None
    size: str | None
    position: str | None

    ATTRIBUTES = ("shape", "color", "size", "position")

    def to_json(self) -> dict[str, str | None]:
        return {name: getattr(self, name) for name in self.ATTRIBUTES}


def _reading_order(item: SceneObject) -> tuple:
    place = POSITIONS.index(item.position) if item.position in POSITIONS else len(POSITIONS)
    return (place, *(str(getattr(item, name)) for name in SceneObject.ATTRIBUTES))


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in reading order (top left first), whatever order they were given in, and a background's name."""

    objects: tuple[SceneObject, ...]
    background: str | None

    def __post_init__(self):
        object.__setattr__(self, "objects", tuple(sorted(self.objects, key=_reading_order)))

    def to_json(self) -> dict:
        """The form that `meta.scene` has in a manifest."""
        return {"objects": [item.to_json() for item in self.objects], "background": self.background}

    @classmethod
    def from_json(cls, record: dict) -> "Scene":
        return cls(tuple(SceneObject(**item) for item in record["objects"]), record["background"])


def content_key(scene: Scene) -> str:
    """The objects alone: scenes that differ only in the background share a key, and so a split."""
    return ";".join("/".join(str(value) for value in dataclasses.astuple(item)) for item in scene.objects)


def split_of(scene: Scene) -> str:
    """The only split that may show this scene's objects.

    It depends on the objects alone, not on a seed: a model trained on one toy world is honestly tested on another.
    """
    digest = hashlib.blake2b(content_key(scene).encode(), digest_size=8).digest()
    fraction = int.from_bytes(digest, "big") / 2**64
    if fraction < HELD_OUT_SHARE:
        return "validation"
    return "test" if fraction < 2 * HELD_OUT_SHARE else "train"


def random_scene(rng: random.Random, max_objects: int = 3, count: int | None = None) -> Scene:
    """One scene by lot, of any split, with `count` objects; None: with at most `max_objects`, their number by lot."""
    if count is None:
        count = rng.choices(range(1, max_objects + 1), OBJECT_COUNT_WEIGHTS[:max_objects])[0]
    colors, places = rng.sample(list(COLORS), count), rng.sample(POSITIONS, count)
    objects = tuple(
        SceneObject(rng.choice(SHAPES), color, rng.choice(SIZES), place)
        for color, place in zip(colors, places, strict=True)
    )
    return Scene(objects, rng.choice(list(BACKGROUNDS)))


def random_scene_of_split(rng: random.Random, split: str, max_objects: int = 3, count: int | None = None) -> Scene:
    """One scene by lot among those that belong to `split`; as `random_scene`."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    while True:
        scene = random_scene(rng, max_objects, count)
        if split_of(scene) == split:
            return scene
