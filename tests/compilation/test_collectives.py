"""What is sent, how much of it, from where, and whether something is computed meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from m6rec_jax.compilation.collectives import Collective, collectives
from m6rec_jax.compilation.hlo_execution import executions
from m6rec_jax.compilation.hlo_text import parse_module
from m6rec_jax.compilation.step_report import roofline, too_large
from m6rec_jax.compilation.topologies import GIB, parse_topology

HLO = Path(__file__).with_name("hlo")
ASYNC_FUSION = (HLO / "async_fusion.hlo").read_text()
PAIRS = (HLO / "pairs.hlo").read_text()
WRAPPED = (HLO / "wrapped.hlo").read_text()


def found(text: str, num_devices: int = 16, num_slices: int = 1) -> dict[str, Collective]:
    executed = list(executions(parse_module(text)))
    sent = collectives(executed, num_devices=num_devices, num_slices=num_slices)
    kinds = [one.kind for one in sent]
    assert len(set(kinds)) == len(kinds), kinds
    return {one.kind: one for one in sent}


def test_collectives_that_a_tpu_fuses_with_products() -> None:
    sent = found(ASYNC_FUSION)
    gathered = sent["all-gather"]
    # Its three parts are one collective, of each of the eight layers.
    assert gathered.payload_bytes == 768 * 128 * 2
    assert gathered.moved_bytes == 8 * 768 * 128 * 2 * 15 // 16
    assert (gathered.times, gathered.group_size) == (8, 16)
    assert gathered.asynchronous
    assert gathered.place == "layer loop"
    assert "mlp/dot_general" in gathered.op_name
    # An all-reduce of which a device keeps its slice is a reduce-scatter.
    scattered = sent["reduce-scatter"]
    assert scattered.moved_bytes == 8 * 768 * 128 * 4 * 15 // 16
    assert not scattered.asynchronous
    assert "transpose" in scattered.op_name
    # Awaited at once: nothing is hidden.
    assert not sent["collective-permute"].asynchronous
    assert sent["collective-permute"].moved_bytes == 8 * 48 * 128 * 2


def test_a_fusion_that_nothing_carries_on_is_not_asynchronous() -> None:
    text = ASYNC_FUSION.replace("fusion(%part, %carried_on)", "fusion(%part, %whole)")
    begin = text.index("  %fusion.2 = ")
    end = text.index("  %async-collective-done")
    alone = text[:begin] + text[end:]
    assert not found(alone)["all-gather"].asynchronous
    # A product of its own between start and end hides it as well.
    product = "  %product = f32[64,256]{1,0} convolution(%x, %w), dim_labels=bf_io->bf\n"
    assert found(alone[:begin] + product + alone[begin:])["all-gather"].asynchronous


@pytest.mark.parametrize(
    ("work", "asynchronous"),
    [
        (
            "%d = bf16[4,8]{1,0} dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            True,
        ),
        ("%b = bf16[8,4]{0,1} bitcast(%p)", False),
    ],
)
def test_pairs_are_asynchronous_if_something_is_computed_between(
    work: str, asynchronous: bool
) -> None:
    one = found(PAIRS.replace("WORK", work), 8)["all-gather"]
    assert one.asynchronous is asynchronous
    assert one.payload_bytes == 32 * 8 * 2
    assert one.place == "outside"


@pytest.mark.parametrize(
    ("start", "payload"),
    [
        (
            "(bf16[4,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%p), channel_id=1, "
            "replica_groups=[1,8]<=[8], dimensions={0}",
            32 * 8 * 2,
        ),
        # Combined: operands, then results, of different sizes and types.
        (
            "((bf16[4,8]{1,0}, f32[2,8]{1,0}, bf16[1]{0}), (bf16[32,8]{1,0}, f32[16,8]{1,0}, "
            "bf16[8]{0})) all-gather-start(%p, %q, %r), channel_id=1, "
            "replica_groups=[1,8]<=[8], dimensions={0}",
            32 * 8 * 2 + 16 * 8 * 4 + 8 * 2,
        ),
        (
            "(bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,1},{1,0}}",
            4 * 8 * 2,
        ),
        (
            "(bf16[4,8]{1,0}, f32[2,8]{1,0}) all-reduce-start(%p, %q), channel_id=1, "
            "replica_groups=[1,8]<=[8], to_apply=%add",
            4 * 8 * 2 + 2 * 8 * 4,
        ),
    ],
)
def test_bytes_of_what_was_combined(start: str, payload: int) -> None:
    text = (
        "ENTRY %main (p: bf16[4,8], q: f32[2,8], r: bf16[1]) -> f32[] {\n"
        "  %p = bf16[4,8]{1,0} parameter(0)\n"
        "  %q = f32[2,8]{1,0} parameter(1)\n"
        "  %r = bf16[1]{0} parameter(2)\n"
        f"  %start = {start}\n"
        "  ROOT %c = f32[] constant(0)\n}"
    )
    (one,) = found(text, 8).values()
    assert one.payload_bytes == payload


def test_wrapped_computations_and_slices() -> None:
    one = found(WRAPPED, 8, 2)["reduce-scatter"]
    assert one.asynchronous
    assert one.between_slices
    assert one.payload_bytes == 64 * 8 * 4
    # 4 to a slice; the pairs 0-4, 1-5, ... cross, pairs of neighbours do not.
    within = WRAPPED.replace("{{0,4},{1,5},{2,6},{3,7}}", "{{0,1},{2,3},{4,5},{6,7}}")
    assert not found(within, 8, 2)["reduce-scatter"].between_slices


def collective(kind: str, payload: int, **changes: object) -> Collective:
    values = {
        "name": "x",
        "op_name": "",
        "group_size": 4,
        "times": 3,
        "place": "layer loop",
        "asynchronous": True,
    }
    return Collective(kind=kind, payload_bytes=payload, **(values | changes))  # type: ignore[arg-type]


def test_bytes_that_a_device_sends() -> None:
    assert collective("all-gather", 400).moved_bytes == 3 * 300
    assert collective("reduce-scatter", 400).moved_bytes == 3 * 300
    assert collective("all-to-all", 400).moved_bytes == 3 * 300
    assert collective("all-reduce", 400).moved_bytes == 3 * 600
    assert collective("collective-permute", 400).moved_bytes == 3 * 400


def test_roofline_takes_the_longest_part_and_adds_what_is_exposed() -> None:
    slice_ = parse_topology("v5e:16x16")
    hidden = collective("all-gather", 10**9, times=1, group_size=16)
    waiting = collective("all-reduce", 10**9, times=1, group_size=16, asynchronous=False)
    times = roofline(slice_, product_flops=197 * 10**12, memory_bytes=81 * 10**10, sent=[])
    assert (times.compute, times.memory, times.step) == (1.0, 1.0, 1.0)
    assert times.utilisation(197 * 10**12 * 128, slice_) == pytest.approx(0.5)
    times = roofline(slice_, 10**9, 10**6, [hidden, waiting])
    # A ring along a whole side has two links a chip.
    one_way = 15 / 16 * 1e9 / (2 * 4.5e10)
    assert times.links == pytest.approx(3 * one_way)
    assert times.exposed == pytest.approx(2 * one_way)
    assert times.step == pytest.approx(one_way + 2 * one_way)
    assert times.bound == "communication"
    crossing = collective("all-reduce", 10**9, times=1, group_size=2, between_slices=True)
    times = roofline(parse_topology("v5e:4x4", 2), 1, 1, [crossing])
    assert times.slices == pytest.approx(1e9 / 3.125e9)
    assert times.links == 0


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G.",
            17.5 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (240.00G) exceeds available HBM (15.75G).",
            240 * GIB,
        ),
        ("INVALID_ARGUMENT: something else (3.00G)", None),
    ],
)
def test_what_a_program_that_is_too_large_would_need(message: str, size: float | None) -> None:
    assert too_large(message) == size
