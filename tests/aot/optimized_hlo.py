"""What a compiled program does, read from its optimized HLO and its thunks."""

import collections
import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Collection, Iterator

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)(.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLS = re.compile(r"\bcalls=%?([\w.-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALL_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_VIEWS = {"bitcast", "reshape", "tuple", "get-tuple-element", "optimization-barrier"}
_MOVES = {
    *("copy", "copy-start", "transpose", "concatenate", "pad", "reverse"),
    *("slice", "dynamic-slice", "all-gather", "gather"),
}


_COLLECTIVES = {
    *("all-reduce", "all-gather", "reduce-scatter", "collective-permute"),
    *("all-to-all", "ragged-all-to-all", "collective-broadcast"),
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program.

    Attributes:
      shapes: Shape of its result, or of each part of it.
      num_bytes: Size of the largest part.
      operands: Names of its operands.
      rest: Its line after the operands.
    """

    name: str
    opcode: str
    shapes: tuple[tuple[int, ...], ...]
    num_bytes: int
    operands: tuple[str, ...]
    rest: str

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from, or else its own name."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else self.name

    def __str__(self) -> str:
        return f"{self.opcode} {self.shapes} of {self.op_name}"


def instructions(text: str) -> Iterator[Instruction]:
    """Yields the instructions of a module whose result stands in memory.

    Of a fusion that is its root, and what the root is a view of: all else in it passes
    through registers, and so does what a fusion inside a fusion yields to others of it.
    """
    # Computations: their instructions, and the name of the root.
    found: dict[str, tuple[dict[str, Instruction], str]] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if (header := _COMPUTATION.match(line)) is None:
            continue
        parts, root = {}, ""
        for line in itertools.takewhile(lambda line: line != "}", lines):
            if (match := _INSTRUCTION.match(line)) is None:
                continue
            is_root, name, result, opcode, operands, rest = match.groups()
            root = name if is_root else root
            names = tuple(re.findall(r"%([\w.-]+)", operands))
            parts[name] = Instruction(name, opcode, *_sizes(result), names, rest)
        found[header[1]] = parts, root

    def written(one: Instruction) -> Iterator[Instruction]:
        """Yields what a fusion writes."""
        parts, root = found.get(_calls(one), ({}, ""))
        left = [root]
        while left:
            if (part := parts.get(left.pop())) is not None:
                yield part
                yield from written(part)
                left += part.operands if part.opcode in _VIEWS else ()

    fused = {_calls(one) for parts, _ in found.values() for one in parts.values()}
    for name, (parts, _) in found.items():
        if name not in fused:
            for one in parts.values():
                yield one
                yield from written(one)


def _calls(one: Instruction) -> str:
    """Returns the computation that a fusion runs; "" of all else."""
    match = _CALLS.search(one.rest)
    return match[1] if match is not None and one.opcode == "fusion" else ""


def _sizes(result: str) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Returns the shapes of a result type, and the bytes of its largest part."""
    shapes, sizes = [], [0]
    for dtype, bits, dims in _ARRAY.findall(result):
        shapes.append(tuple(int(size) for size in dims.split(",") if size))
        width = 1 if dtype == "pred" else max(int(bits) // 8, 1)
        sizes.append(math.prod(shapes[-1]) * width)
    return tuple(shapes), max(sizes)


def read_hlo(
    text: str, layer_cache_bytes: int, weight_shapes: Collection[tuple[int, ...]]
) -> dict[str, object]:
    """Returns what the gate asks of a program.

    Args:
      layer_cache_bytes: Bytes of one layer's KV cache.
      weight_shapes: Shapes of the matrices of layers, as they are stored.

    Returns:
      `calls`: number of custom calls by target. `collectives`: what goes between
      devices, and its bytes. `cache_moves`: instructions that copy
      or cut as much as a layer's cache. `weight_moves`: those that copy or cut a
      layer's weight. `weight_casts`: those that write one in another type.
      `dynamic_loops`: loops whose number of trips is not known. `conditionals`:
      branches. All but the first two are lists of names.
    """
    found = list(instructions(text))
    weights = {tuple(sorted(shape)) for shape in weight_shapes}
    moves = [one for one in found if one.opcode in _MOVES]
    casts = [one for one in found if one.opcode in ("convert", "multiply")]

    def is_weight(one: Instruction) -> bool:
        return any(
            tuple(sorted(size for size in shape if size > 1)) in weights
            for shape in one.shapes
        )

    return {
        "calls": collections.Counter(
            target[1]
            for one in found
            if (target := _CALL_TARGET.search(one.rest)) is not None
        ),
        "collectives": [
            (opcode, one.num_bytes)
            for one in found
            if (opcode := one.opcode.removesuffix("-start")) in _COLLECTIVES
        ],
        "cache_moves": [
            str(one) for one in moves if one.num_bytes >= layer_cache_bytes
        ],
        "weight_moves": [str(one) for one in moves if is_weight(one)],
        "weight_casts": [str(one) for one in casts if is_weight(one)],
        "dynamic_loops": [
            one.op_name
            for one in found
            if one.opcode == "while" and "known_trip_count" not in one.rest
        ],
        "conditionals": [one.op_name for one in found if one.opcode == "conditional"],
    }


def num_unplaced(text: str) -> int:
    """Returns how many results of a traced program the compiler may place anywhere."""
    main = next(line for line in text.splitlines() if "@main(" in line)
    results = main.rpartition("->")[2]
    return results.count("tensor<") - results.count("sdy.sharding = ")


def read_ptxas(text: str) -> dict[str, int]:
    """Returns the most registers of a Pallas kernel, and the bytes that all spill."""
    registers = [int(one) for one in re.findall(r"Used (\d+) registers", text)]
    spilled = [int(one) for one in re.findall(r"(\d+) bytes spill stores", text)]
    return {"most_registers": max(registers, default=0), "spilled_bytes": sum(spilled)}


def read_thunks(folder: pathlib.Path, module: str) -> list[str]:
    """Returns what the host launches, one after the other, in one run of a program.

    Args:
      folder: What `--xla_dump_to` names, with `--xla_dump_hlo_as_text`.
    """
    for stage in ("thunk_sequence_after_thunk_passes", "thunk_sequence"):
        # The first stage is written only if it changed something.
        for path in folder.glob(f"*.{module}.{stage}.txt"):
            return re.findall(r"^\d+: (k\w+)", path.read_text(), re.MULTILINE)
    return []
