"""Programs as Triton: text from a table of operations, for accelerators and for Triton's interpreter.

A source is a module of its own, which `hf_optim.engine.launch_triton` loads, with these kernels. Their tables are those
of `hf_optim.engine.passes`, on the device:

    hf_optim_pass(table, which, where, sizes, row, numbers, sums, partial, index, origin, halt, rows)
        one chunk of CHUNK elements a program. `numbers` has one column more, the step count; index, int64 (rows), is
        the parameter's number among all: what stochastic rounding draws from (`evaluate.noise_key`).
        halt: a float64; nothing is read or written while it is not 0 (a bad loss).
        rows: how many there are; ALIGNED: every address is a multiple of 16.
    hf_optim_gather(partial, first, row, total)
        one row of the table a program: adds its chunks in an order that only their number decides.

and of a scalar program, whose values lie where `Place`s say,

    hf_optim_scalars(<one pointer for each table that is read or written>, count, rows)

one instance a lane, BLOCK of them a program; or, if `alone`, one instance by one program of one warp. What is `summed`
is added up over the `rows` rows of its table first, in an order that only their number decides.

Why it is written as it is: bfloat16 is read, rounded and written as bits, since the interpreter truncates; float32
divides
and takes roots by the correctly rounded forms, which float64 does not have and does not need; names carry a prefix,
for a rule may call its slots as it likes; nothing is contracted (`enable_fp_fusion=False` at the launch).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_optim.engine import emit_codes
from hf_optim.engine.int8_codes import BLOCK, CODED
from hf_optim.engine.trace import TRUTHS, Op, Program, Ref, Write

_TYPES = {
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.bfloat16: "tl.uint16",  # as bits
    torch.float16: "tl.float16",
    torch.int8: "tl.int8",
    torch.uint8: "tl.uint8",
}

_HEAD = '''\
import triton
import triton.language as tl


@triton.jit
def from_bf16(bits):
    return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def to_bf16(rounded):
    return (rounded.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16)


@triton.jit
def rounded_to_bf16(value):
    """float32, rounded to bfloat16 (to nearest, ties to even) and back; any NaN becomes the one that torch writes."""
    bits = value.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return tl.where(value != value, float("nan"), bits.to(tl.float32, bitcast=True))


@triton.jit
def rounded_by_noise(value, element, key, slot):
    """float32, rounded to bfloat16 with 16 random bits: `hf_optim.engine.stochastic_rounding.noise`."""
    h = (element.to(tl.uint32) * 0x9E3779B1) ^ (key + slot)
    h = h ^ (h >> 15)
    h = h * 0x846CA68B
    bits = (value.to(tl.int32, bitcast=True) + (h >> 16).to(tl.int32)) & -65536
    finite = tl.abs(value) < float("inf")
    return tl.where(finite, bits.to(tl.float32, bitcast=True), rounded_to_bf16(value))


@triton.jit
def noise_key(index, time):
    """`hf_optim.engine.stochastic_rounding.noise_key` of seed 0."""
    h = time.to(tl.uint64) * 0xBF58476D1CE4E5B9 + index.to(tl.uint64) * 0x94D049BB133111EB
    h = h ^ (h >> 30)
    h = h * 0xBF58476D1CE4E5B9
    h = h ^ (h >> 27)
    h = h * 0x94D049BB133111EB
    return (h >> 32).to(tl.uint32)


@triton.jit
def power(base, exponent):
    """float64: base^exponent, with the sign and the special values of pow."""
    size = tl.exp2(exponent * tl.log2(tl.abs(base)))
    whole = tl.floor(exponent) == exponent
    odd = exponent - 2.0 * tl.floor(exponent / 2.0) == 1.0
    signed = tl.where(whole, tl.where(odd, -size, size), tl.where(base == float("-inf"), size, float("nan")))
    signed = tl.where(base < 0.0, signed, size)
    return tl.where(exponent == 0.0, 1.0, tl.where(base == 1.0, 1.0, signed))
'''

_PASS = """

@triton.jit
def one_chunk(chunk, i, r, start, size, table, numbers, sums, partial, index, origin, rows,
              CHUNK: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr):
%(chunk)s

@triton.jit(do_not_specialize=["rows"])
def hf_optim_pass(table, which, where, sizes, row, numbers, sums, partial, index, origin, halt, rows,
                  CHUNK: tl.constexpr, ALIGNED: tl.constexpr):
    chunk = tl.program_id(0)
    i = tl.load(which + chunk).to(tl.int64)
    r = tl.load(row + i).to(tl.int64)
    if r < 0:
        return
    if tl.load(halt) != 0:
        return
    start = tl.multiple_of(tl.load(where + chunk), CHUNK)
    size = tl.load(sizes + i)
    if start + CHUNK <= size:  # without a mask, so that 16 bytes are loaded at once
        one_chunk(chunk, i, r, start, size, table, numbers, sums, partial, index, origin, rows,
                  CHUNK, ALIGNED, True)
    else:
        one_chunk(chunk, i, r, start, size, table, numbers, sums, partial, index, origin, rows,
                  CHUNK, ALIGNED, False)
"""

_GATHER = """

@triton.jit
def hf_optim_gather(partial, first, row, total, TERMS: tl.constexpr, LANES: tl.constexpr):
    i = tl.program_id(0)
    start = tl.load(first + i)
    stop = tl.load(first + i + 1)
    if tl.load(row + i) < 0:
        stop = start
    for j in tl.static_range(TERMS):
        sum = tl.zeros([LANES], tl.float64)
        for k in range(start, stop, LANES):
            at = k + tl.arange(0, LANES)
            sum += tl.load(partial + at.to(tl.int64) * TERMS + j, mask=at < stop, other=0.0)
        tl.store(total + i * TERMS + j, tl.sum(sum, 0))
"""


# --- operations ------------------------------------------------------------------------------------------------------


def _precise(name: str, plain: str) -> dict[torch.dtype, str]:
    return {torch.float32: name, torch.float64: plain}


#: what an operation is in the program's dtype: {0}, {1}, ... are its arguments, {type} the dtype
_OPERATIONS: dict[str, str | dict[torch.dtype, str]] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": _precise("tl.div_rn({0}, {1})", "{0} / {1}"),
    "pow": "power({0}.to(tl.float64), {1}.to(tl.float64)).to({type})",
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "sqrt": _precise("tl.sqrt_rn({0})", "tl.sqrt({0})"),
    "sign": "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0)).to({type})",
    "reciprocal": _precise("tl.div_rn(tl.full((), 1.0, {type}), {0})", "1.0 / {0}"),
    "lerp": "tl.where(tl.abs({2}) < 0.5, {0} + {2} * ({1} - {0}), {1} - ({1} - {0}) * (1.0 - {2}))",
    "bf16": "rounded_to_bf16({0}.to(tl.float32)).to({type})",
    "f16": "{0}.to(tl.float32).to(tl.float16).to({type})",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "and": "tl.where({0}, {1}, {0})",
    "or": "tl.where({0}, {0}, {1})",
    "not": "{0} == 0",
    "isfinite": "tl.abs({0}) < float('inf')",
    "where": "tl.where({0}, {1}, {2})",
}

#: powers that torch computes another way
_POWERS = {2.0: "{0} * {0}", 3.0: "{0} * {0} * {0}", 1.0: "{0} + 0.0"}


class _Body:
    """The lines that compute a program's values."""

    def __init__(self, program: Program, inputs: Sequence[str], prefix: str = "o") -> None:
        self._prefix = prefix
        self.dtype, self.type = program.dtype, _TYPES[program.dtype]
        self.names = list(inputs)
        self.truths = {len(inputs) + k for k, op in enumerate(program.ops) if op.name in TRUTHS}
        self.lines = [self._line(op) for op in program.ops]

    def value(self, ref: Ref) -> str:
        """As a number in the program's dtype."""
        if isinstance(ref, int):
            return f"{self.names[ref]}.to({self.type})" if ref in self.truths else self.names[ref]
        return f"tl.full((), {_literal(ref)}, {self.type})"

    def _truth(self, ref: Ref) -> str:
        return self.names[ref] if isinstance(ref, int) and ref in self.truths else f"({self.value(ref)} != 0)"

    def _line(self, op: Op) -> str:
        as_truth = {"and": 2, "or": 2, "not": 1, "where": 1}.get(op.name, 0)
        values = [self._truth(a) if i < as_truth else self.value(a) for i, a in enumerate(op.arguments)]
        text = _OPERATIONS[op.name]
        if op.name == "pow" and op.arguments[1] in _POWERS and not isinstance(op.arguments[1], int):
            text = _POWERS[op.arguments[1]]
        form = text if isinstance(text, str) else text[self.dtype]
        name = f"{self._prefix}_{len(self.names)}"
        self.names.append(name)
        return f"{name} = {form.format(*values, type=self.type)}"


def _literal(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'float("{value}")'


# --- passes over tensors ---------------------------------------------------------------------------------------------


def emit(program: Program, recipe: Program | None = None) -> str:
    """The module of a program over tensors: `hf_optim_pass`, and `hf_optim_gather` if it has sums.

    Args:
        recipe: a scalar program that makes the program's sums (`r_NAME`) from a row of raw ones (`o_NAME`).
    """
    kind, names, coded = _TYPES[program.dtype], program.names, program.coded
    body = _Body(
        program,
        [*(f"v_{k}" for k in names), *(f"c_{k}" for k in program.numbers), *(f"s_{k}" for k in program.sums)],
    )
    lines = ["at = start + tl.arange(0, CHUNK)", "inside = at < size"]
    for j, (k, dtype) in enumerate(program.tensors):
        lines += [
            f"p_{k} = tl.load(table + {j} * rows + i).to(tl.pointer_type({_TYPES[dtype]}))",
            "if ALIGNED:",
            f"    p_{k} = tl.multiple_of(p_{k}, 16)",
            "if WHOLE:",
            f"    v_{k} = tl.load(p_{k} + at)",
            "else:",
            f"    v_{k} = tl.load(p_{k} + at, mask=inside, other=0)",
        ]
        if k in coded:
            lines += [
                f"q_{k} = tl.load(table + {len(names) + coded.index(k)} * rows + i).to(tl.pointer_type(tl.float32))",
                f"v_{k} = decoded(v_{k}, tl.load(q_{k} + at // {BLOCK}, mask=inside, other=0), {dtype is torch.int8})",
            ]
        lines.append(f"v_{k} = {'from_bf16(v_' + k + ')' if dtype is torch.bfloat16 else 'v_' + k}.to({kind})")
    width = len(program.numbers) + 1
    lines += [f"c_{k} = tl.load(numbers + r * {width} + {j}).to({kind})" for j, k in enumerate(program.numbers)]
    if recipe is None:
        width_ = len(program.sums)
        lines += [f"s_{k} = tl.load(sums + i * {width_} + {j}).to({kind})" for j, k in enumerate(program.sums)]
    else:
        raw = [k for k in recipe.numbers if k.startswith("o_")]
        lines += [f"raw_{j} = tl.load(sums + i * {len(raw)} + {j})" for j in range(len(raw))]
        derived = _Body(recipe, [f"raw_{raw.index(k)}" if k in raw else "" for k in recipe.numbers], "d")
        lines += derived.lines
        lines += [f"s_{write.tensor[2:]} = {derived.value(write.value)}.to({kind})" for write in recipe.writes]
    if any(write.noisy for write in program.writes):
        lines += [
            f"time = tl.load(numbers + r * {width} + {width - 1}).to(tl.int64)",
            "key = noise_key(tl.load(index + i), time)",
            "element = tl.load(origin + i) + at",
        ]
    lines += body.lines
    stored = dict(program.tensors)
    for write in program.writes:
        lines += _store(write, body, stored[write.tensor], names.index(write.tensor))
    for j, term in enumerate(program.terms):
        lines += [
            f"term = tl.where(inside, {body.value(term)}.to(tl.float64), 0.0)",
            f"tl.store(partial + chunk * {len(program.terms)} + {j}, tl.sum(term, 0))",
        ]
    chunk = "".join(f"    {line}\n" for line in lines)
    head = _HEAD + (emit_codes.TRITON if coded else "")
    return head + _PASS % {"chunk": chunk} + (_GATHER if program.terms else "")


def _store(write: Write, body: _Body, dtype: torch.dtype, slot: int) -> list[str]:
    value, k, before = body.value(write.value), write.tensor, []
    if dtype in CODED:
        offset = f"tl.full((), {slot * 0x7FEB352D & 0xFFFFFFFF}, tl.uint32)"
        wide = f"tl.broadcast_to({value}, (CHUNK,)).to(tl.float32)"
        before = [
            f"e_{k}, scales_{k} = encoded({wide}, inside, element, key, {offset}, "
            f"{dtype is torch.int8}, CHUNK, {BLOCK})",
            f"block_{k} = start // {BLOCK} + tl.arange(0, CHUNK // {BLOCK})",
            f"tl.store(q_{k} + block_{k}, scales_{k}, mask=block_{k} * {BLOCK} < size)",
        ]
        value = f"e_{k}"
    elif dtype is torch.float16:
        value = f"{value}.to(tl.float32).to(tl.float16)"
    elif dtype is torch.bfloat16 and write.noisy:
        offset = f"tl.full((), {slot * 0x7FEB352D & 0xFFFFFFFF}, tl.uint32)"
        value = f"to_bf16(rounded_by_noise({value}.to(tl.float32), element, key, {offset}))"
    elif dtype is torch.bfloat16:
        value = f"to_bf16(rounded_to_bf16({value}.to(tl.float32)))"
    return [
        *before,
        f"w_{write.tensor} = {value}.to({_TYPES[dtype]})",
        "if WHOLE:",
        f"    tl.store(p_{write.tensor} + at, w_{write.tensor})",
        "else:",
        f"    tl.store(p_{write.tensor} + at, w_{write.tensor}, mask=inside)",
    ]


# --- scalar programs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a value of a scalar program lies: `column` of a table with `width` columns and a row an instance; if
    `common`, in its first row for all of them; if `summed`, the sum over all rows."""

    table: str
    column: int
    width: int
    common: bool = False
    summed: bool = False


def emit_scalars(
    program: Program,
    reads: Mapping[str, Place],
    stores: Mapping[str, Sequence[Place]],
    dtypes: Mapping[str, torch.dtype],
    alone: bool,
) -> str:
    """The module of a scalar program.

    Args:
        program: without tensors.
        reads, stores: where each input lies, and the places where each output goes (none, one or several).
        dtypes: of every table; the kernel takes the tables in this order.
        alone: whether there is one instance, which alone may write a common value.
    """
    body = _Body(program, [f"c_{k}" for k in program.numbers])
    lines = [] if alone else ["k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)", "inside = k < count"]
    refs = [*(a for op in program.ops for a in op.arguments), *(write.value for write in program.writes)]
    used = {ref for ref in refs if isinstance(ref, int)}
    for i, name in enumerate(program.numbers):
        if i in used:
            lines += _load(name, reads[name], alone)
    lines += [*body.lines, "tl.debug_barrier()"]
    for write in program.writes:
        for place in stores.get(write.tensor, ()):
            if place.common and not alone:
                raise ValueError(f"{write.tensor} is common to all instances")
            value = f"{body.value(write.value)}.to({_TYPES[dtypes[place.table]]})"
            if alone:
                lines.append(f"tl.store({place.table} + {place.column}, {value})")
            else:
                at = f"{place.table} + k * {place.width} + {place.column}"
                lines.append(f"tl.store({at}, tl.broadcast_to({value}, (BLOCK,)), mask=inside)")
    head = (
        f"{_HEAD}\n\n@triton.jit(do_not_specialize=['count', 'rows'])\n"
        f"def hf_optim_scalars({', '.join(dtypes)}, count, rows, BLOCK: tl.constexpr):\n"
    )
    return head + "".join(f"    {line}\n" for line in lines)


def _load(name: str, place: Place, alone: bool) -> list[str]:
    at = f"{place.table} + {place.column}"
    if place.summed:
        return [
            "sum = tl.zeros([BLOCK], tl.float64)",
            "for j in range(0, rows, BLOCK):",
            "    at = j + tl.arange(0, BLOCK)",
            f"    sum += tl.load({at} + at * {place.width}, mask=at < rows, other=0.0)",
            f"c_{name} = tl.sum(sum, 0)",
        ]
    if alone or place.common:
        return [f"c_{name} = tl.load({at}).to(tl.float64)"]
    return [f"c_{name} = tl.load({at} + k * {place.width}, mask=inside, other=1.0).to(tl.float64)"]
