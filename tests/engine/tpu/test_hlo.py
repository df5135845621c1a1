"""Optimized HLO text read: small programs by hand, with the TPU's layouts and what its compiler writes around them."""

import pytest

from engine.tpu.hlo import Collective, Counts, Moved, count_hlo
from engine.tpu.layout import parse_shapes

HEAD = 'HloModule jit_step, is_scheduled=true, num_partitions=8\n\nFileNames\n1 "step.py"\n\n'


def counts_of(text: str) -> Counts:
    return count_hlo((HEAD + text).splitlines(keepends=True))


@pytest.mark.parametrize(
    ("text", "unpadded", "padded"),
    [
        ("f32[3,5]{1,0}", 60, 60),
        ("bf16[64,197,384]{2,1,0:T(8,128)(2,1)}", 64 * 197 * 384 * 2, 64 * 200 * 384 * 2),
        ("bf16[64,6,197,197]{3,2,1,0:T(8,128)(2,1)}", 64 * 6 * 197 * 197 * 2, 64 * 6 * 200 * 256 * 2),
        ("f32[384,3]{0,1:T(4,128)}", 384 * 3 * 4, 384 * 4 * 4),  # the fastest axis is the first
        ("f32[10]{0:T(256)}", 40, 1024),
        ("f32[]{:T(128)S(6)}", 4, 512),
        ("pred[7]{0:T(1024)}", 7, 1024),
        ("s4[6]{0:T(8)}", 3, 4),
    ],
)
def test_bytes_of_a_shape(text: str, unpadded: int, padded: int) -> None:
    (shape,) = parse_shapes(text)
    assert (shape.unpadded, shape.padded) == (unpadded, padded)


def test_a_tuple_has_several_shapes() -> None:
    text = "(f32[64,10]{0,1:T(8,128)S(1)}, /*index=1*/bf16[4]{0:T(256)}, u32[]{:S(2)})"
    assert [(shape.dtype, shape.dims, shape.space) for shape in parse_shapes(text)] == [
        ("f32", (64, 10), 1),
        ("bf16", (4,), 0),
        ("u32", (), 2),
    ]


FUSED = """
%inner (p: bf16[16,128], q: bf16[128,256]) -> bf16[16,256] {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %turned = bf16[128,256]{1,0:T(8,128)(2,1)} copy(%q)
  ROOT %product = bf16[16,256]{1,0:T(8,128)(2,1)} convolution(%p, %turned), dim_labels=bf_io->bf
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main (a: bf16[16,128], b: bf16[128,256]) -> (bf16[16,256]) {
  %a = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(1)
  %start = (bf16[128,256]{1,0:T(8,128)(2,1)S(1)}, bf16[128,256]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%b)
  %done = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %fusion = bf16[16,256]{1,0:T(8,128)(2,1)} fusion(%a, %done), kind=kOutput, calls=%inner, metadata={op_name="head"}, \
backend_config={"window_config":{"estimated_cycles":"1924"}}
  %flat = bf16[4096]{0:T(256)} bitcast(%fusion)
  ROOT %out = (bf16[16,256]{1,0:T(8,128)(2,1)}) tuple(%fusion)
}
"""


def test_a_fusion_counts_once_and_its_inner_values_take_no_memory() -> None:
    found = counts_of(FUSED)
    assert found.ops == {"copy": 1, "fusion": 1, "convolution": 1}  # the copy inside is none
    assert found.products == {"bf16 x bf16, default": 2 * 16 * 128 * 256}
    # The weight is read once, to be put on the chip; the fusion reads its input and writes its result.
    assert found.hbm_bytes == 2 * (128 * 256 + 16 * 128 + 16 * 256)
    # In any memory: fetched, put on the chip, used.
    assert found.most_moved[0] == Moved("bf16[128,256]", 3, 3 * 65536, 65536)
    assert found.cycles == 1924
    assert found.collectives == ()
    assert found.host_transfers == {}


def test_parameters_and_results_make_the_padding() -> None:
    found = counts_of("""
ENTRY %main (a: f32[5,100]) -> f32[5,100] {
  %a = f32[5,100]{1,0:T(8,128)} parameter(0)
  ROOT %b = f32[5,100]{1,0:T(8,128)} negate(%a)
}
""")
    assert (found.unpadded_bytes, found.padded_bytes) == (2 * 2000, 2 * 4096)
    (waste,) = found.most_padded
    assert (waste.shape, waste.arrays, waste.padding) == ("f32[5,100] T(8,128)", 2, 2 * 2096)


def test_collectives_by_kind_and_dtype() -> None:
    found = counts_of("""
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%scatter (g: f32[64]) -> f32[8] {
  %g = f32[64]{0} parameter(0)
  ROOT %r = f32[8]{0} reduce-scatter(%g), channel_id=9, dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[100], b: bf16[30]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %b = bf16[30]{0} parameter(1)
  %both = (f32[100]{0}, f32[100]{0}) all-reduce(%a, %a), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  %begin = bf16[30]{0} all-reduce-start(%b), channel_id=2, to_apply=%add
  %end = bf16[30]{0} all-reduce-done(%begin)
  %s = (bf16[30]{0}, bf16[240]{0}) all-gather-start(%b), channel_id=3, dimensions={0}
  %t = bf16[240]{0} all-gather-done(%s)
  %c = f32[8]{0} fusion(%a), kind=kCustom, calls=%scatter
  ROOT %r = f32[100]{0} get-tuple-element(%both), index=0
}
""")
    assert found.collectives == (
        Collective("all-reduce", "f32", 2, 800),
        Collective("reduce-scatter", "f32", 1, 256),
        Collective("all-reduce", "bf16", 1, 60),
        Collective("all-gather", "bf16", 1, 60),
    )


def test_a_collective_that_is_spread_over_fusions_is_one() -> None:
    """The compiler lets one run beside others' work in parts, which have its channel and the name of their chain."""
    part = """
%part{n} (g: u8[1,16]) -> u8[8,16] {{
  %g = u8[1,16]{{1,0}} parameter(0)
  ROOT %r = u8[8,16]{{1,0}} all-gather(%g), channel_id={channel}, dimensions={{0}}, frontend_attributes={{chain_id="1"}}
}}
"""
    parts = "".join(part.format(n=n, channel=channel) for n, channel in enumerate((7, 7, 8)))
    found = counts_of(
        parts
        + """
ENTRY %main (a: u8[1,16]) -> u8[8,16] {
  %a = u8[1,16]{1,0} parameter(0)
  %b = u8[8,16]{1,0} fusion(%a), kind=kCustom, calls=%part0
  %c = u8[8,16]{1,0} fusion(%a), kind=kCustom, calls=%part1
  ROOT %d = u8[8,16]{1,0} fusion(%a), kind=kCustom, calls=%part2
}
"""
    )
    assert found.collectives == (Collective("all-gather", "u8", 2, 32),)


LOOP = """
%body (s: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %s = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = f32[8,128]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %w = f32[8,128]{1,0:T(8,128)} copy(%v)
  ROOT %n = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%i, %w)
}

%until (s: (s32[], f32[8,128])) -> pred[] {
  %s = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%s), index=0
  ROOT %less = pred[]{:T(512)S(6)} compare(%i, %i), direction=LT
}

ENTRY %main (s: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %s = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %w = (s32[], f32[8,128]{1,0:T(8,128)}) while(%s), condition=%until, body=%body, backend_config=TRIPS
}
"""


def test_a_loop_counts_as_often_as_it_runs() -> None:
    known = counts_of(LOOP.replace("TRIPS", '{"known_trip_count":{"n":"5"}}'))
    assert known.ops["copy"] == 5
    assert known.hbm_bytes == 5 * 2 * 4096
    assert counts_of(LOOP.replace("TRIPS", "{}")).ops["copy"] == 1


def test_pieces_that_are_fetched_count_as_they_are_read() -> None:
    found = counts_of("""
ENTRY %main (a: f32[100,128]) -> f32[100,128] {
  %a = f32[100,128]{1,0:T(8,128)} parameter(0)
  %s = ((f32[100,128]{1,0:T(8,128)}), f32[48,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a)
  %d = f32[48,128]{1,0:T(8,128)S(1)} slice-done(%s)
  %t = ((f32[100,128]{1,0:T(8,128)}), f32[52,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a)
  %e = f32[52,128]{1,0:T(8,128)S(1)} slice-done(%t)
  %j = f32[100,128]{1,0:T(8,128)S(1)} custom-call(%d, %e), custom_call_target="ConcatBitcast"
  ROOT %r = f32[100,128]{1,0:T(8,128)} negate(%j)
}
""")
    assert found.hbm_bytes == (48 + 56 + 104) * 128 * 4  # 52 rows take 56, 100 take 104
    assert (found.unpadded_bytes, found.padded_bytes) == (2 * 100 * 512, 2 * 104 * 512)
    assert found.most_moved[0].times == 2  # read and written by the negation; joining moves nothing


def test_transfers_to_the_host() -> None:
    found = counts_of("""
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0:T(256)} parameter(0)
  %t = token[] after-all()
  %o = token[] outfeed(%a, %t), outfeed_config="x"
  %m = f32[8]{0:T(256)S(5)} copy(%a)
  %c = f32[8]{0:T(256)} custom-call(%a), custom_call_target="xla_python_cpu_callback"
  %d = f32[8]{0:T(256)} custom-call(%a), custom_call_target="Sharding"
  ROOT %b = f32[8]{0:T(256)} negate(%a)
}
""")
    assert found.host_transfers == {"outfeed": 1, "copy": 1, "custom-call": 1}


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        count_hlo(["module @step {\n", "}\n"])
