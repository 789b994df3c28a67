"""Compiled text -> instructions, and how often each runs."""

import pytest

from ar_omni_jax.compile_check.hlo import Array, parse
from tests.compile_check.programs import STEP


def test_every_instruction_is_read_with_its_arrays():
    program = parse(STEP)
    assert program.entry == "main" and len(program.computations) == 7
    body = program.computations["body"].instructions
    assert body["product"].opcode == "dot" and body["product"].operands == ("x", "gather-done")
    assert body["product"].results == (Array("f32", (8, 128)),)
    assert body["near"].results[0].space == 1 and body["near"].results[0].bytes == 8 * 128 * 4
    assert [a.shape for a in body["gather-start"].results] == [(16, 128), (64, 128)]
    assert body["gather-start"].attribute("replica_groups") == "{{0,1,2,3},{4,5,6,7}}"
    assert body["pair"].attribute("replica_groups") == "[4,2]<=[2,2,2]T(0,2,1)"
    assert body["product"].attribute("no_such") == ""
    assert program.computations["main"].root.name == "answer"


def test_metadata_over_several_lines_ends_no_computation():
    metadata = ', frontend_attributes={kernel_metadata={\n"block": "{\\"q\\": 512}"\n}}, metadata={op_name="kernel"}'
    broken = STEP.replace("negate(%product)", "negate(%product)" + metadata)
    body = parse(broken).computations["body"]
    assert list(body.instructions) == list(parse(STEP).computations["body"].instructions)
    assert body.instructions["near"].attribute("metadata") == '{op_name="kernel"}'


def test_a_loop_runs_its_body_as_often_as_the_compiler_says():
    program = parse(STEP)
    assert program.times["main"] == 1 and program.times["body"] == 3
    assert program.times["fused_piece"] == 3 and program.times["fused_scatter"] == 1
    assert program.computations["fused_piece"].fused and not program.computations["body"].fused
    assert "add" not in program.times  # what an all-reduce applies to each element is no work of its own


def test_without_the_count_the_counter_tells_it_and_else_it_is_unknown():
    silent = STEP.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    assert parse(silent).times["body"] == 3
    # A loop that the compiler has unrolled by two counts in twos.
    twos = silent.replace("%one.2 = s32[] constant(1)", "%one.2 = s32[] constant(2)")
    assert parse(twos).times["body"] == 2 and parse(twos).unknown_loops == 0
    late = silent.replace("tuple(%nothing, %p0", "tuple(%begun, %p0")
    late = late.replace("  %empty", "  %begun = s32[] constant(1)\n  %empty")
    assert parse(late).times["body"] == 2
    unknown = parse(silent.replace("%three = s32[] constant(3)", "%three = s32[] get-tuple-element(%state.2), index=0"))
    assert unknown.times["body"] == 1 and unknown.unknown_loops == 1


@pytest.mark.parametrize(
    "array,size",
    [
        (Array("bf16", (3, 5)), 30),
        (Array("f8e4m3fn", (7,)), 7),
        (Array("s4", (7,)), 4),
        (Array("pred", (2, 2)), 4),
        (Array("token", ()), 0),
        (Array("f32", ()), 4),
    ],
)
def test_bytes(array, size):
    assert array.bytes == size


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule nothing")
