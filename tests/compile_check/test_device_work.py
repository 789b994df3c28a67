"""Operations and memory traffic of a fixed program, counted by hand."""

import pytest

from ar_omni_jax.compile_check.hlo import parse
from ar_omni_jax.compile_check.products import product_flops
from ar_omni_jax.compile_check.traffic import memory_bytes
from tests.compile_check.programs import STEP

F = 4  # bytes of a float32


def test_products_count_loops_and_convolutions():
    total, unknown = product_flops(parse(STEP))
    loop = 3 * 2 * 8 * 128 * 64
    # [8, 64] with features first is 64 rows of 8 features; the kernel's first dimension is its input features.
    after = 2 * 64 * 128 * 16
    assert (total, unknown) == (loop + after, [])


def one(line: str, *parameters: str) -> str:
    """A program of one instruction over parameters of the given types."""
    head = ", ".join(f"p{i}: {kind}" for i, kind in enumerate(parameters))
    name = "splash_mha_dq_segmented.1" if "256,128" in line else "r"
    lines = [f"  %p{i} = {kind} parameter({i})" for i, kind in enumerate(parameters)]
    return "\n".join([f"ENTRY %main ({head}) -> f32[] {{", *lines, f"  ROOT %{name} = {line}", "}"])


@pytest.mark.parametrize(
    "line,parameters,flops",
    [
        # Batched products: the TPU writes the batch dimension as a spatial one, of which only the diagonal meets.
        (
            "f32[32,16,24]{2,1,0} convolution(%p0, %p1), window={size=32 stride=31 pad=0_0 lhs_dilate=32}, "
            "dim_labels=0bf_0io->0bf",
            ("f32[32,16,8]", "f32[32,8,24]"),
            2 * 32 * 16 * 24 * 8,
        ),
        # An ordinary convolution over 5 positions with 3 taps and a border of one on each side: 13 meetings.
        ("f32[2,5,6]{2,1,0} convolution(%p0, %p1), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
         ("f32[2,5,4]", "f32[3,4,6]"), 2 * 2 * 6 * 4 * 13),
        ("f32[3,5,7]{2,1,0} dot(%p0, %p1), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
         "rhs_contracting_dims={1}", ("f32[3,5,11]", "f32[3,11,7]"), 2 * 3 * 5 * 7 * 11),
        ('(f32[5,7]{1,0}, s8[1024]{0}) custom-call(%p0, %p1), custom_call_target="__cublas$gemm", backend_config='
         '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
         ("f32[5,11]", "f32[11,7]"), 2 * 5 * 7 * 11),
        ('(bf16[2,4,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%p0), custom_call_target="__cudnn$fmhaSoftmax", '
         'backend_config={"cudnn_fmha_backend_config":{"mask_type":"CAUSAL"}}',
         ("bf16[2,8,4,16]",), 2 * (2 * 2 * 4 * 8 * 8 * 16 // 2)),
        ('f32[4]{0} custom-call(%p0), custom_call_target="Sharding"', ("f32[4]",), 0),
        ('bf16[2,4,256,128]{3,2,1,0} custom-call(%p0), custom_call_target="tpu_custom_call"', ("f32[4]",),
         3 * (2 * 2 * 4 * 256 * 256 * 128 // 2)),
        ('bf16[4,256,128]{2,1,0} custom-call(%p0), custom_call_target="tpu_custom_call"', ("f32[4]",),
         3 * (2 * 1 * 4 * 256 * 256 * 128 // 2)),  # one row a device
    ],
)  # fmt: skip
def test_products_of_each_kind(line, parameters, flops):
    assert product_flops(parse(one(line, *parameters))) == (flops, [])


def test_a_kernel_that_shows_no_products_is_named():
    text = one('f32[4]{0} custom-call(%p0), custom_call_target="tpu_custom_call"', "f32[4]")
    assert product_flops(parse(text)) == (0, ["r"])


def test_traffic_counts_pieces_and_leaves_out_the_chips_own_memory():
    entry = {
        "empty": F + 3 * 8 * 128 * F,  # reads the scalar
        "grown": (8 * 64 + 16 * 128 + 64 * 128) * F,
        "scattered": (64 * 128 + 1 + 16 * 128) * F,
        "half": 64 * 128 * (F + 2),
        "slices": 64 * 128 * (2 + 2),
        "same": 2 * 8 * 64 * F,
        "shifted": 2 * 8 * 64 * F,
    }
    body = {
        "gather": (16 * 128 + 64 * 128) * F,
        "fusion.1": (16 * 32 + 1 + 16 * 32) * F,  # one layer of the stack, not three
        "product": (8 * 64 + 64 * 128 + 8 * 128) * F,
        "near": 8 * 128 * F,  # its result stays on the chip
        "fusion.2": (1 + 8 * 128) * F,  # updated in place, from the chip's own memory
        "pair": 2 * 8 * 64 * F,
        "next": 3 * F,
    }
    assert memory_bytes(parse(STEP)) == sum(entry.values()) + 3 * sum(body.values())
