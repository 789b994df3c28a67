"""Collectives of a fixed program, counted by hand."""

from ar_omni_jax.compile_check.collectives import Collective, device_groups, find_collectives, summarize
from ar_omni_jax.compile_check.hlo import Instruction, parse
from tests.compile_check.programs import STEP

GATHERED = 64 * 128 * 4
ROWS = 8 * 64 * 4


def test_each_collective_with_its_runs_bytes_and_groups():
    found = {c.name: c for c in find_collectives(parse(STEP), devices=8, slices=2)}
    assert found["gather-start"] == Collective("all-gather", "gather-start", 3, 4, GATHERED)
    assert found["pair"] == Collective("all-reduce", "pair", 3, 2, ROWS)
    # An all-reduce of which the fusion keeps a slice is the TPU's reduce-scatter.
    assert found["summed"] == Collective("reduce-scatter", "summed", 1, 4, GATHERED)
    assert found["slices"] == Collective("all-reduce", "slices", 1, 2, 64 * 128 * 2, crosses=True)
    assert found["shifted"] == Collective("collective-permute", "shifted", 1, 2, ROWS)
    assert "same" not in found  # groups of one device move nothing
    assert len(found) == 5


def test_in_one_slice_nothing_crosses():
    assert not any(c.crosses for c in find_collectives(parse(STEP), devices=8))


def test_bytes_on_the_wire_are_those_of_a_ring():
    assert Collective("all-gather", "", 1, 4, 400).wire_bytes == 300
    assert Collective("reduce-scatter", "", 1, 4, 400).wire_bytes == 300
    assert Collective("all-reduce", "", 1, 4, 400).wire_bytes == 600
    assert Collective("all-to-all", "", 1, 4, 400).wire_bytes == 300
    assert Collective("collective-permute", "", 1, 2, 400).wire_bytes == 400


def test_summary_adds_up_runs_and_keeps_slices_apart():
    found = summarize(find_collectives(parse(STEP), devices=8, slices=2))
    assert list(found) == ["all-gather", "all-reduce", "all-reduce (slices)", "collective-permute", "reduce-scatter"]
    assert found["all-gather"] == {
        "instructions": 1,
        "runs": 3,
        "bytes": 3 * GATHERED,
        "wire_bytes": 3 * GATHERED * 3 / 4,
    }
    assert found["all-reduce (slices)"]["wire_bytes"] == 64 * 128 * 2


def test_a_collective_that_is_spread_over_fusions_counts_once():
    piece = """
%piece{n} (w{n}: f32[4,8], a{n}: f32[8,8], b{n}: f32[8,8]) -> (f32[32,8], f32[8,8]) {{
  %w{n} = f32[4,8] parameter(0)
  %a{n} = f32[8,8] parameter(1)
  %b{n} = f32[8,8] parameter(2)
  %whole{n} = f32[32,8] all-gather(%w{n}), channel_id=7, replica_groups=mesh['x'=8] {{'x'}}, dimensions={{0}}
  %dot{n} = f32[8,8] dot(%a{n}, %b{n}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %both{n} = (f32[32,8], f32[8,8]) tuple(%whole{n}, %dot{n})
}}
"""
    text = piece.format(n=1) + piece.format(n=2)
    text += "ENTRY %main (w: f32[4,8], a: f32[8,8]) -> f32[8,8] {\n  %w = f32[4,8] parameter(0)\n"
    text += "  %a = f32[8,8] parameter(1)\n"
    for n in (1, 2):
        text += f"  %f{n} = (f32[32,8], f32[8,8]) fusion(%w, %a, %a), kind=kCustom, calls=%piece{n}\n"
    text += "  ROOT %out = f32[8,8] get-tuple-element(%f2), index=1\n}\n"
    (found,) = find_collectives(parse(text), devices=8)
    assert (found.kind, found.times, found.group, found.bytes) == ("all-gather", 1, 8, 32 * 8 * 4)


def test_between_tpu_slices_the_host_sends():
    text = """ENTRY %main (part: f32[16,128]) -> f32[16,128] {
  %part = f32[16,128]{1,0} parameter(0)
  %token = token[] after-all()
  %send = (f32[16,128]{1,0}, u32[], token[]) send(%part, %token), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:7}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=4, is_host_transfer=true
  %recv = (f32[16,128]{1,0}, u32[], token[]) recv(%token), channel_id=3, is_host_transfer=true
  %received = (f32[16,128]{1,0}, token[]) recv-done(%recv), channel_id=3, is_host_transfer=true
  ROOT %sum = f32[16,128]{1,0} get-tuple-element(%received), index=0
}
"""
    found = find_collectives(parse(text), devices=8, slices=2)
    assert found == [Collective("all-reduce", "send", 1, 2, 16 * 128 * 4, crosses=True)]
    assert found[0].wire_bytes == 16 * 128 * 4  # of two slices each gets the other's part


def groups(rest: str) -> list[tuple[int, ...]]:
    return device_groups(Instruction("x", "all-reduce", (), (), rest), 8)


def test_groups_in_all_their_spellings():
    assert groups("channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add") == [(0, 2), (1, 3)]
    assert groups("replica_groups=[2,4]<=[8], to_apply=%add") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert groups("replica_groups=[4,2]<=[2,4]T(1,0)") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert groups("replica_groups=[4,2]<=[2,2,2]T(0,2,1), use_global_device_ids=true") == [
        (0, 2),
        (1, 3),
        (4, 6),
        (5, 7),
    ]
    assert groups("replica_groups={}, to_apply=%add") == [tuple(range(8))]
    assert groups("replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert groups("replica_groups=mesh['a'=2,'b'=4] {'a'}, x=1") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert groups("replica_groups=mesh['a'=8] {'a':(2)2}, x=1") == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert groups("source_target_pairs={{0,1},{1,0}}") == [(0, 1), (1, 0)]
