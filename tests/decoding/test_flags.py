"""Flags of the decoding commands: what they change, and what they refuse."""

import argparse

import pytest

from ar_omni_jax.decoding.flags import add_strategy_flags, check_strategy_flags, guidance_of, strategies_of
from ar_omni_jax.decoding.strategy import GREEDY, Strategy, strategy_for


def options(*words):
    parser = argparse.ArgumentParser()
    add_strategy_flags(parser)
    found = parser.parse_args(words)
    check_strategy_flags(parser, found)
    return found


def test_nothing_given_changes_nothing():
    assert strategies_of(options()) is None and guidance_of(options()) is None


def test_greedy_covers_every_part_of_every_task():
    table = strategies_of(options("--greedy"))
    assert {strategy_for(table, "t2i", "image"), strategy_for(table, "chat", "text")} == {GREEDY}


def test_sampled_parts_change_and_greedy_ones_stay():
    table = strategies_of(options("--temperature=0.5"))
    assert strategy_for(table, "t2i", "image") == Strategy(temperature=0.5, top_p=0.96)
    assert strategy_for(table, "asr", "text").greedy and strategy_for(table, "tts", "speech").greedy
    assert strategy_for(strategies_of(options("--top_p=1")), "chat", "text") == Strategy(temperature=0.8, top_p=1.0)


def test_a_guidance_scale_alone_leaves_the_other_at_one():
    found = guidance_of(options("--text_guidance=2"))
    assert (found.text_scale, found.image_scale) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--temperature=0",), "--temperature=0.0 must be in"),
        (("--temperature=nan",), "--temperature=nan must be in"),
        (("--top_p=1.5",), "--top_p=1.5 must be in"),
        (("--greedy", "--top_p=0.9"), "--top_p is for sampling"),
    ],
)
def test_values_without_meaning_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        options(*words)
    assert message in capsys.readouterr().err
