"""What of a program's text counts as memory that is moved, and what the host sees."""

import pathlib

from tests.aot.optimized_hlo import read_hlo, read_ptxas, read_thunks

HLO = """\
HloModule jit_step, is_scheduled=true

%fused_slice (a: bf16[3,64,32], b: s32[]) -> bf16[64,32] {
  %a = bf16[3,64,32]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %cut = bf16[1,64,32]{2,1,0:T(8,128)(2,1)} dynamic-slice(%a, %b), metadata={op_name="cut"}
  ROOT %view = bf16[64,32]{1,0} bitcast(%cut)
}

%nested_copy (a: s8[64,32]) -> s8[64,32] {
  %a = s8[64,32]{1,0:T(32,128)(4,1)} parameter(0)
  ROOT %retiled = s8[64,32]{1,0:T(8,128)(4,1)} copy(%a)
}

%nested_root (a: bf16[64,32]) -> bf16[64,32] {
  ROOT %kept = bf16[64,32]{0,1} transpose(%a)
}

%fused_dot (a: s8[64,32], c: bf16[8,64]) -> (f32[8,32], bf16[64,32]) {
  %a = s8[64,32]{1,0:T(32,128)(4,1)} parameter(0)
  %inner = s8[64,32]{1,0:T(8,128)(4,1)} fusion(%a), kind=kLoop, calls=%nested_copy
  %outer = bf16[64,32]{0,1} fusion(%b), kind=kLoop, calls=%nested_root
  %dot.1 = f32[8,32]{1,0} convolution(%c, %inner), dim_labels=bf_io->bf
  ROOT %both = (f32[8,32]{1,0}, bf16[64,32]{0,1}) tuple(%dot.1, %outer)
}

%gemm_fusion (a: bf16[64,16], b: bf16[64,16], c: bf16[8,64]) -> f32[8,32] {
  %a = bf16[64,16]{1,0} parameter(0)
  %b = bf16[64,16]{1,0} parameter(1)
  %c = bf16[8,64]{1,0} parameter(2)
  %joined = bf16[64,32]{1,0} concatenate(%a, %b), dimensions={1}
  ROOT %dot = f32[8,32]{1,0} dot(%c, %joined), lhs_contracting_dims={1}
}

ENTRY %main (kv: bf16[4,1024,64]) -> (f32[8,32], s32[]) {
  %slice = bf16[64,32]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused_slice
  %gemm = f32[8,32]{1,0} fusion(%x, %y, %z), kind=kCustom, calls=%gemm_fusion
  %quantised = (f32[8,32]{1,0}, bf16[64,32]{0,1}) fusion(%v, %x), kind=kOutput, calls=%fused_dot
  %copied = (bf16[4,1024,64]{2,1,0}, u32[]) copy-start(%kv)
  %loop = (s32[], f32[8]) while(%t), body=%f, backend_config={"known_trip_count":{"n":"4"}}
  %open = (s32[], f32[8]) while(%t), body=%g, metadata={op_name="pages"}
  %branch = f32[8]{0} conditional(%p, %t), metadata={op_name="is_drawn"}
  ROOT %call = f32[8,32]{1,0} custom-call(%gemm), custom_call_target="kernel"
}
"""  # noqa: E501


def test_only_what_reaches_memory_counts() -> None:
    assert read_hlo(HLO, 4 * 1024 * 64, {(64, 32)}) == {
        "calls": {"kernel": 1},
        "cache_moves": ["copy-start ((4, 1024, 64), ()) of copied"],
        "weight_moves": [
            "dynamic-slice ((1, 64, 32),) of cut",
            "transpose ((64, 32),) of kept",
        ],
        "weight_casts": [],
        "dynamic_loops": ["pages"],
        "conditionals": ["is_drawn"],
        "collectives": [],
    }


def test_registers_are_read_of_all_kernels() -> None:
    text = (
        "    0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info    : Used 96 registers, used 2 barriers\n"
        "ptxas info    : Used 144 registers, used 2 barriers\n"
    )
    assert read_ptxas(text) == {"most_registers": 144, "spilled_bytes": 8}


def test_the_host_sees_the_top_level_of_the_last_thunks(tmp_path: pathlib.Path) -> None:
    lines = "000: kCommandBuffer [source]\n    001: kCopy\n002: kWhile [sink]\nbody:\n"
    path = tmp_path / "module_0007.jit_step.thunk_sequence.txt"
    path.write_text(lines)
    assert read_thunks(tmp_path, "jit_step") == ["kCommandBuffer", "kWhile"]
    path.with_stem("module_0007.jit_step.thunk_sequence_after_thunk_passes").write_text(
        "000: kCommandBuffer\n"
    )
    assert read_thunks(tmp_path, "jit_step") == ["kCommandBuffer"]
