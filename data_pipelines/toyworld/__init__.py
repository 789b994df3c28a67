"""The toy world: a small data set of pictures, speech and text about coloured shapes, made as real files."""

from data_pipelines.toyworld.drawing import draw
from data_pipelines.toyworld.grammar import jsgf_grammar
from data_pipelines.toyworld.language import caption, parse_caption, vocabulary_words
from data_pipelines.toyworld.scene import Scene, SceneObject, random_scene

__all__ = [
    "Scene",
    "SceneObject",
    "caption",
    "draw",
    "jsgf_grammar",
    "parse_caption",
    "random_scene",
    "vocabulary_words",
]
