"""Compiled programs in XLA's text form, small enough to count by hand."""

# Eight devices in two slices of four. A loop of three layers: each gathers a weight [64, 128] from quarters over the
# slice, takes its piece of a stack, multiplies, writes the result into a stack and sums in pairs. After the loop the
# gradient is summed over the slices, and scattered.
STEP = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_piece (stack: f32[3,16,32], turn: s32[]) -> f32[16,32] {
  %stack = f32[3,16,32]{2,1,0} parameter(0)
  %turn = s32[] parameter(1)
  %zero = s32[] constant(0)
  %piece = f32[1,16,32]{2,1,0} dynamic-slice(%stack, %turn, %zero, %zero), dynamic_slice_sizes={1,16,32}
  ROOT %flat = f32[16,32]{1,0} bitcast(%piece)
}

%fused_update (kept: f32[3,8,128], value: f32[8,128], turn.2: s32[]) -> f32[3,8,128] {
  %kept = f32[3,8,128]{2,1,0} parameter(0)
  %value = f32[8,128]{1,0} parameter(1)
  %turn.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %one = f32[1,8,128]{2,1,0} bitcast(%value)
  ROOT %put = f32[3,8,128]{2,1,0} dynamic-update-slice(%kept, %one, %turn.2, %zero.2, %zero.2)
}

%fused_scatter (whole: f32[64,128], where: s32[]) -> f32[16,128] {
  %whole = f32[64,128]{1,0} parameter(0)
  %where = s32[] parameter(1)
  %zero.3 = s32[] constant(0)
  %summed = f32[64,128]{1,0} all-reduce(%whole), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %mine = f32[16,128]{1,0} dynamic-slice(%summed, %where, %zero.3), dynamic_slice_sizes={16,128}
}

%body (state: (s32[], f32[8,64], f32[16,128], f32[3,16,32], f32[3,8,128])) -> (s32[], f32[8,64], f32[16,128], f32[3,16,32], f32[3,8,128]) {
  %state = (s32[], f32[8,64]{1,0}, f32[16,128]{1,0}, f32[3,16,32]{2,1,0}, /*index=4*/f32[3,8,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,64]{1,0} get-tuple-element(%state), index=1
  %w = f32[16,128]{1,0} get-tuple-element(%state), index=2
  %stacks = f32[3,16,32]{2,1,0} get-tuple-element(%state), index=3
  %results = f32[3,8,128]{2,1,0} get-tuple-element(%state), index=4
  %gather-start = (f32[16,128]{1,0}, f32[64,128]{1,0:T(8,128)}) all-gather-start(%w), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, use_global_device_ids=true
  %gather-done = f32[64,128]{1,0:T(8,128)} all-gather-done(%gather-start)
  %fusion.1 = f32[16,32]{1,0} fusion(%stacks, %i), kind=kLoop, calls=%fused_piece
  %product = f32[8,128]{1,0:T(8,128)} dot(%x, %gather-done), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/dot_general"}
  %near = f32[8,128]{1,0:T(8,128)S(1)} negate(%product)
  %fusion.2 = f32[3,8,128]{2,1,0} fusion(%results, %near, %i), kind=kLoop, calls=%fused_update
  %pair = f32[8,64]{1,0} all-reduce(%x), channel_id=2, replica_groups=[4,2]<=[2,2,2]T(0,2,1), to_apply=%add
  %one.2 = s32[] constant(1)
  %next = s32[] add(%i, %one.2)
  ROOT %out = (s32[], f32[8,64]{1,0}, f32[16,128]{1,0}, f32[3,16,32]{2,1,0}, /*index=4*/f32[3,8,128]{2,1,0}) tuple(%next, %pair, %w, %stacks, %fusion.2)
}

%test (state.2: (s32[], f32[8,64], f32[16,128], f32[3,16,32], f32[3,8,128])) -> pred[] {
  %state.2 = (s32[], f32[8,64]{1,0}, f32[16,128]{1,0}, f32[3,16,32]{2,1,0}, /*index=4*/f32[3,8,128]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state.2), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%j, %three), direction=LT
}

ENTRY %main (p0: f32[8,64], p1: f32[16,128], p2: f32[3,16,32]) -> (f32[8,64], f32[16,128], bf16[64,128]) {
  %p0 = f32[8,64]{1,0} parameter(0)
  %p1 = f32[16,128]{1,0} parameter(1)
  %p2 = f32[3,16,32]{2,1,0} parameter(2)
  %nothing = s32[] constant(0)
  %empty = f32[3,8,128]{2,1,0} broadcast(%nothing), dimensions={}
  %start = (s32[], f32[8,64]{1,0}, f32[16,128]{1,0}, f32[3,16,32]{2,1,0}, /*index=4*/f32[3,8,128]{2,1,0}) tuple(%nothing, %p0, %p1, %p2, %empty)
  %loop = (s32[], f32[8,64]{1,0}, f32[16,128]{1,0}, f32[3,16,32]{2,1,0}, /*index=4*/f32[3,8,128]{2,1,0}) while(%start), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %last = f32[8,64]{1,0} get-tuple-element(%loop), index=1
  %grown = f32[64,128]{1,0} convolution(%last, %p1), window={}, dim_labels=fb_io->bf
  %scattered = f32[16,128]{1,0} fusion(%grown, %nothing), kind=kCustom, calls=%fused_scatter
  %half = bf16[64,128]{1,0} convert(%grown)
  %slices = bf16[64,128]{1,0} all-reduce(%half), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %same = f32[8,64]{1,0} all-reduce(%last), channel_id=4, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %shifted = f32[8,64]{1,0} collective-permute(%same), channel_id=5, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %answer = (f32[8,64]{1,0}, f32[16,128]{1,0}, bf16[64,128]{1,0}) tuple(%shifted, %scattered, %slices)
}
"""  # noqa: E501
