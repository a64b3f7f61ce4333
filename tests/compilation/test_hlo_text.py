"""Reading optimised HLO: shapes, operands, trips of loops, costs, groups of devices."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.compilation.collectives import replica_groups
from m6rec_jax.compilation.hlo_costs import costs, memory_bytes, product_flops
from m6rec_jax.compilation.hlo_execution import executions, trip_count
from m6rec_jax.compilation.hlo_text import Buffer, Module, parse_module
from m6rec_jax.errors import DataError

ASYNC_FUSION = Path(__file__).with_name("hlo") / "async_fusion.hlo"


def module_of(*lines: str, before: str = "") -> Module:
    """A module whose entry has these lines; the last one is the root."""
    body = [f"  {line}" for line in lines]
    body[-1] = "  ROOT " + body[-1].strip()
    return parse_module("\n".join([before, "ENTRY %main () -> f32[] {", *body, "}"]))


def test_instructions_are_read_whole() -> None:
    module = parse_module(ASYNC_FUSION.read_text())
    assert next(iter(module.computations)) == "gather_start"
    body = module.computations["body"].instructions
    start = body["async-collective-start"]
    assert start.opcode == "fusion"
    assert start.operands == ("slice_fusion",)
    assert start.called("calls") == ["gather_start"]
    assert [(b.dtype, b.shape, b.memory) for b in start.buffers[:3]] == [
        ("bf16", (48, 128), 0),
        ("bf16", (768, 128), 0),
        ("s32", (2,), 4),
    ]
    assert body["x"].buffers == (Buffer("bf16", (64, 768), 1),)
    assert body["fusion.2"].op_name.endswith("attention/dot_general")
    assert body["counter"].attribute("index") == "0"
    assert module.computations["condition"].instructions["constant.2"].literal == "8"
    assert module.entry.root.name == "result"


def test_brackets_in_quotes_and_comments_do_not_count() -> None:
    module = module_of(
        "%a.1 = f32[2,3]{1,0} parameter(0)",
        "%c = (f32[2,3]{1,0}, /*index=1*/s4[9]{0}) custom-call(%a.1, /*index=1*/%a.1), "
        'custom_call_target="f(}", metadata={op_name="jit(f)/a, b=c"}, channel_id=4',
    )
    call = module.entry.root
    assert call.operands == ("a.1", "a.1")
    assert call.attribute("custom_call_target") == '"f(}"'
    assert call.attribute("channel_id") == "4"
    assert call.op_name == "jit(f)/a, b=c"
    assert [buffer.num_bytes for buffer in call.buffers] == [24, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("%f (x: f32[]) -> f32[] {\n}", "no ENTRY computation"),
        ("ENTRY %main () -> f32[] {\n  nonsense\n}", "line 2: not an instruction: 'nonsense'"),
        ("ENTRY %main () -> f32[] {\n  %a = f32[2]\n}", "line 2: no operation after the shape"),
    ],
)
def test_what_is_not_hlo_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_module(text)


def loop_of(condition: str, body: str, start: int) -> Module:
    return parse_module(
        f"""
%condition (c: (s32[], f32[4])) -> pred[] {{
  %c = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
{condition}
}}
%body (b: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %b = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = f32[4] get-tuple-element(%b), index=1
{body}
  ROOT %t = (s32[], f32[4]) tuple(%next, %x)
}}
ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = f32[4] parameter(0)
  %start = s32[] constant({start})
  %carried = (s32[], f32[4]) tuple(%start, %p)
  %loop = (s32[], f32[4]) while(%carried), condition=%condition, body=%body
  ROOT %r = f32[4] get-tuple-element(%loop), index=1
}}
"""
    )


ONE = "  %one = s32[] constant(1)\n  %next = s32[] add(%i, %one)"
TWO = "  %two = s32[] constant(2)\n  %next = s32[] add(%two, %i)"


@pytest.mark.parametrize(
    ("condition", "body", "start", "trips"),
    [
        ("  %n = s32[] constant(5)\n  ROOT %t = pred[] compare(%i, %n), direction=LT", ONE, 0, 5),
        ("  %n = s32[] constant(5)\n  ROOT %t = pred[] compare(%i, %n), direction=LE", ONE, 1, 5),
        ("  %n = s32[] constant(5)\n  ROOT %t = pred[] compare(%n, %i), direction=GT", TWO, 0, 3),
        ("  %n = s32[] constant(5)\n  ROOT %t = pred[] compare(%i, %n), direction=LT", ONE, 7, 0),
        # May end earlier: the bound counts.
        (
            "  %n = s32[] constant(6)\n  %k = pred[] compare(%i, %n), direction=LT\n"
            "  %x = f32[4] get-tuple-element(%c), index=1\n  %m = pred[] custom-call(%x)\n"
            "  ROOT %t = pred[] and(%k, %m)",
            ONE,
            0,
            6,
        ),
        ("  ROOT %t = pred[] custom-call(%i)", ONE, 0, None),
        (
            "  %n = s32[] constant(5)\n  ROOT %t = pred[] compare(%i, %n), direction=LT",
            "  %next = s32[] custom-call(%i)",
            0,
            None,
        ),
    ],
)
def test_trips_follow_from_the_condition(
    condition: str, body: str, start: int, trips: int | None
) -> None:
    module = loop_of(condition, body, start)
    loop = module.entry.instructions["loop"]
    assert trip_count(module, module.entry, loop) == trips
    counted = 17 if trips is None else trips
    times = {one.instruction.name: one.times for one in executions(module, unknown_trips=17)}
    assert times["next"] == counted
    assert times["r"] == 1


def test_trips_that_the_compiler_notes() -> None:
    noted = 'backend_config={"known_trip_count":{"n":"24"},"known_init_step":{"init":"0"}}'
    text = f"ENTRY %main () -> f32[] {{\n  ROOT %w = f32[] while(%t), body=%b, {noted}\n}}"
    module = parse_module(text)
    assert trip_count(module, module.entry, module.entry.root) == 24


def scanned(unroll: int) -> Module:
    """Three layers of [16, 32] x [32, 32] in a scan, and one product outside, on a CPU."""

    def run(x: jax.Array, kernels: jax.Array, last: jax.Array) -> jax.Array:
        step = lambda x, kernel: (jnp.tanh(x @ kernel), None)  # noqa: E731
        x, _ = jax.lax.scan(step, x, kernels, unroll=unroll)
        return x @ last

    shapes = [(16, 32), (3, 32, 32), (32, 8)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return parse_module(jax.jit(run).lower(*arguments).compile().as_text())


@pytest.mark.parametrize("unroll", [1, 3])
def test_scan_bodies_count_as_often_as_they_run(unroll: int) -> None:
    """XLA's own analysis counts a body once; unrolled or not, the products are the same."""
    module = scanned(unroll)
    found = costs(module, executions(module))
    assert found.product_flops == 3 * 2 * 16 * 32 * 32 + 2 * 16 * 32 * 8


def test_products_of_a_tpu() -> None:
    """Batched products are convolutions whose windows meet one element a position."""
    module = module_of(
        "%a = bf16[16,12,512,64]{3,2,1,0} parameter(0)",
        "%b = bf16[16,12,512,64]{3,2,1,0} parameter(1)",
        "%c = f32[16,12,512,512]{3,2,1,0} convolution(%a, %b), "
        "window={size=16x12 stride=15x11 lhs_dilate=16x12}, dim_labels=01bf_01oi->01bf",
    )
    assert product_flops(module.entry, module.entry.root) == 2 * 16 * 12 * 512 * 512 * 64
    # Two parts of 48 rows of a kernel [768, 12, 64], whose heads the window reaches one at a time.
    module = module_of(
        "%a = bf16[16,512,2,48,1]{3,2,1,0,4} parameter(0)",
        "%b = bf16[2,48,12,64,1]{3,2,1,0,4} parameter(1)",
        "%c = f32[16,512,12,64,1]{3,2,1,0,4} convolution(%a, %b), window={size=1x12x2 "
        "pad=0_0x11_11x0_0 rhs_reversal=0x1x0}, dim_labels=0b2f1_2i1o0->0b1f2",
    )
    assert product_flops(module.entry, module.entry.root) == 2 * (16 * 512) * (2 * 48) * (12 * 64)


@given(
    size=st.integers(1, 6),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    input_dilation=st.integers(1, 3),
)
def test_positions_of_a_window(
    size: int, kernel: int, stride: int, padding: int, dilation: int, input_dilation: int
) -> None:
    """Against a convolution of ones by ones, which sums the positions that meet an element."""
    reach = (kernel - 1) * dilation + 1
    room = (size - 1) * input_dilation + 1 + 2 * padding - reach
    if room < 0:
        return
    outputs = room // stride + 1
    # The convolution by hand: ones with zeros between and around them.
    dilated = np.zeros((size - 1) * input_dilation + 1 + 2 * padding)
    dilated[padding : len(dilated) - padding or None : input_dilation] = 1
    windows = [dilated[o * stride : o * stride + reach : dilation] for o in range(outputs)]
    expected = int(sum(window.sum() for window in windows))
    module = module_of(
        f"%a = f32[2,{size},3]{{2,1,0}} parameter(0)",
        f"%b = f32[{kernel},3,5]{{2,1,0}} parameter(1)",
        f"%c = f32[2,{outputs},5]{{2,1,0}} convolution(%a, %b), window={{size={kernel} "
        f"stride={stride} pad={padding}_{padding} lhs_dilate={input_dilation} "
        f"rhs_dilate={dilation}}}, dim_labels=b0f_0io->b0f",
    )
    assert product_flops(module.entry, module.entry.root) == 2 * 2 * 3 * 5 * expected


def test_bytes_of_slices_and_of_what_lies_on_the_chip() -> None:
    module = parse_module(ASYNC_FUSION.read_text())
    body = module.computations["body"]

    def moved(name: str) -> int:
        return memory_bytes(module, body, body.instructions[name])

    # One of the stack's eight slices is read, and written.
    assert moved("slice_fusion") == 2 * 48 * 128 * 2
    # x and the product lie on the chip; w and the part are read, the gathered array is written.
    assert moved("fusion.2") == 768 * 256 * 2 + 48 * 128 * 2 + 768 * 128 * 2
    assert moved("w") == moved("tuple.2") == 0
    entry = module.entry
    copied = memory_bytes(module, entry, entry.instructions["copy-start.1"])
    assert copied == 64 * 768 * 2  # read; the copy is on the chip


@st.composite
def iota_groups(draw: st.DrawFn) -> tuple[str, list[list[int]], int]:
    dims = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    order = draw(st.permutations(range(len(dims))))
    count = math.prod(dims)
    size = draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
    devices = np.arange(count).reshape(dims).transpose(order).reshape(-1, size)
    written = f"[{count // size},{size}]<=[{','.join(map(str, dims))}]"
    written += f"T({','.join(map(str, order))})"
    return written, devices.tolist(), count


@given(iota_groups())
def test_groups_written_as_iota(case: tuple[str, list[list[int]], int]) -> None:
    written, expected, count = case
    attributes = f"channel_id=3, replica_groups={written}, dimensions={{0}}"
    assert replica_groups(attributes, count).tolist() == expected


def test_groups_written_out_as_a_mesh_and_as_pairs() -> None:
    assert replica_groups("replica_groups={{0,2},{1,3}}, x=1", 4).tolist() == [[0, 2], [1, 3]]
    assert replica_groups("replica_groups={}", 3).tolist() == [[0, 1, 2]]
    assert replica_groups("to_apply=%add", 2).tolist() == [[0, 1]]
    mesh = "replica_groups=mesh['data'=2,'fsdp'=3] {'fsdp'}, dimensions={1}"
    assert replica_groups(mesh, 6).tolist() == [[0, 1, 2], [3, 4, 5]]
    mesh = "replica_groups=mesh['data'=2,'fsdp'=3] {'data'}"
    assert replica_groups(mesh, 6).tolist() == [[0, 3], [1, 4], [2, 5]]
    mesh = "replica_groups=mesh['a'=2,'b'=2] {'a','b'}"
    assert replica_groups(mesh, 4).tolist() == [[0, 1, 2, 3]]
    pairs = "source_target_pairs={{0,1},{1,0}}, channel_id=2"
    assert replica_groups(pairs, 2).tolist() == [[0, 1], [1, 0]]
