"""A Program as C++: one function over all tensors, the same bits on every machine and for any number of threads.

Elements are computed 16 at a time, in as many vectors as the machine's registers make of them. Sums have 16 lanes,
which are added up in float64 every 1,024 elements; a chunk's sums are written down, and `gather` adds each tensor's
chunks in their order. No fused multiply-add (a flag of the build), no library but libm's powf.
"""

from __future__ import annotations

import math

import torch

from hf_optim.engine import emit_codes
from hf_optim.engine.int8_codes import BLOCK, SCALE
from hf_optim.engine.trace import TRUTHS, Program, Ref, Write

#: bytes ahead of what is computed that are asked for
_AHEAD = 2048
#: elements of a chunk: what a thread takes at once; part of the sums' definition, so never tuned
CHUNK = 1 << 14

_STORED = {
    torch.float32: "float", torch.float64: "double", torch.bfloat16: "bf16", torch.float16: "_Float16",
    torch.int8: "int8_t", torch.uint8: "uint8_t",
}  # fmt: skip

# no headers: they take longer to read than the rest to compile
_HEAD = """#define memcpy __builtin_memcpy
typedef __INT32_TYPE__ int32_t; typedef __INT64_TYPE__ int64_t; typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t; typedef __UINT64_TYPE__ uint64_t;
namespace {
typedef %(real)s T;
#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif
constexpr int L = 16;  // lanes of a sum
constexpr int W = REGISTER / sizeof(T), PARTS = L / W;  // a wider vector gcc would compare element by element
typedef T V __attribute__((vector_size(W * sizeof(T))));
typedef float F __attribute__((vector_size(W * 4)));
typedef %(int)s M __attribute__((vector_size(W * sizeof(T))));  // truths, all bits alike
typedef uint32_t U __attribute__((vector_size(W * 4)));
typedef uint16_t H __attribute__((vector_size(W * 2)));
struct bf16 { uint16_t bits; };
#define INLINE static inline __attribute__((always_inline))
INLINE V all(T s) { V r; for (int i = 0; i < W; i++) r[i] = s; return r; }
INLINE V all(V v) { return v; }
INLINE V where(M t, V a, V b) { return t ? a : b; }
INLINE V where(bool t, V a, V b) { return t ? a : b; }
INLINE T where(bool t, T a, T b) { return t ? a : b; }
INLINE V maximum(V a, V b) { return ((a > b) | (a != a)) ? a : b; }
INLINE V minimum(V a, V b) { return ((a < b) | (a != a)) ? a : b; }
INLINE T maximum(T a, T b) { return a > b || a != a ? a : b; }
INLINE T minimum(T a, T b) { return a < b || a != a ? a : b; }
INLINE V absolute(V a) { return (V)((M)a & ~(M)all(T(-0.0))); }
INLINE T absolute(T a) { return __builtin_fabs(a); }
INLINE T root(T a) { return %(sqrt)s(a); }
INLINE V root(V a) { V r; for (int i = 0; i < W; i++) r[i] = %(sqrt)s(a[i]); return r; }
INLINE T power(T a, T b) { return %(pow)s(a, b); }
INLINE V power(V a, T b) { V r; for (int i = 0; i < W; i++) r[i] = %(pow)s(a[i], b); return r; }
INLINE V sign(V a) { return a > 0 ? all(1) : a < 0 ? all(-1) : all(0); }
INLINE T sign(T a) { return T(a > 0) - T(a < 0); }
INLINE M finite(V a) { return a - a == 0; }
INLINE bool finite(T a) { return a - a == 0; }
INLINE V lerp(V a, V b, T w) { return absolute(w) < T(0.5) ? a + w * (b - a) : b - (b - a) * (1 - w); }
INLINE V lerp(V a, V b, V w) { return absolute(w) < T(0.5) ? a + w * (b - a) : b - (b - a) * (1 - w); }
INLINE T lerp(T a, T b, T w) { return absolute(w) < T(0.5) ? a + w * (b - a) : b - (b - a) * (1 - w); }

INLINE U halves(F v) {  // float -> bfloat16, to nearest, ties to even
    const U u = (U)v;
    const U rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    return v != v ? U{} + 0x7FC0u : rounded;
}
INLINE F whole(U halves) { return (F)(halves << 16); }
INLINE F floats(V v) { return %(to_float)s; }
INLINE V reals(F v) { return %(from_float)s; }
INLINE V to_bf16(V v) { return reals(whole(halves(floats(v)))); }
%(half)s
INLINE V load(const float* p) { F v; memcpy(&v, p, sizeof v); return reals(v); }
INLINE void store(float* p, V v) { const F f = floats(v); memcpy(p, &f, sizeof f); }
INLINE V load(const bf16* p) { H h; memcpy(&h, p, sizeof h); return reals(whole(__builtin_convertvector(h, U))); }
INLINE void store(bf16* p, V v) { const H h = __builtin_convertvector(halves(floats(v)), H); memcpy(p, &h, sizeof h); }
INLINE void store(bf16* p, V v, uint32_t key, uint32_t element) {  // stochastically; see evaluate.noise
    U e; for (int i = 0; i < W; i++) e[i] = i;
    U h = ((e + element) * 0x9E3779B1u) ^ key;
    h ^= h >> 15;
    h *= 0x846CA68Bu;
    const F f = floats(v);
    const U bits = f - f == 0 ? ((U)f + (h >> 16)) >> 16 : halves(f);
    const H out = __builtin_convertvector(bits, H);
    memcpy(p, &out, sizeof out);
}
%(double)s
%(codes)s
INLINE double add_up(const V* v) { double s = 0; for (int i = 0; i < L; i++) s += v[i / W][i %% W]; return s; }

struct Pass {  // hf_optim.engine.kernels.Arguments
    const uint64_t* table;
    const int32_t* which;
    const int64_t* where;
    const int64_t* sizes;
    const int32_t* row;
    const double* numbers;
    const double* sums;
    double* partial;
    const uint32_t* keys;
    const int64_t* origin;
    int64_t tensors, chunks, chunk, next;
};
}  // namespace
"""

_HALF = """typedef _Float16 HF __attribute__((vector_size(W * 2)));
INLINE V to_f16(V v) { return reals(__builtin_convertvector(__builtin_convertvector(floats(v), HF), F)); }
INLINE V load(const _Float16* p) { HF h; memcpy(&h, p, sizeof h); return reals(__builtin_convertvector(h, F)); }
INLINE void store(_Float16* p, V v) { const HF h = __builtin_convertvector(floats(v), HF); memcpy(p, &h, sizeof h); }"""

_DOUBLE = """typedef double D __attribute__((vector_size(W * 8)));
INLINE V load(const double* p) { D d; memcpy(&d, p, sizeof d); return __builtin_convertvector(d, V); }
INLINE void store(double* p, V v) { const D d = __builtin_convertvector(v, D); memcpy(p, &d, sizeof d); }"""

#: an operation -> the C++ expression of its arguments
_OPERATIONS = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}", "neg": "-{}", "reciprocal": "T(1) / {}",
    "maximum": "maximum({}, {})", "minimum": "minimum({}, {})", "abs": "absolute({})", "sqrt": "root({})",
    "sign": "sign({})", "pow": "power({}, {})", "lerp": "lerp({}, {}, {})", "where": "where({}, {}, {})",
    "gt": "{} > {}", "ge": "{} >= {}", "lt": "{} < {}", "le": "{} <= {}", "and": "{} & {}", "or": "{} | {}",
    "not": "{} == 0", "isfinite": "finite({})", "bf16": "to_bf16({})", "f16": "to_f16({})",
}  # fmt: skip
#: whose arguments must be of one kind: all vectors or all numbers
_ALIKE = frozenset({"maximum", "minimum", "where", "lerp"})


def literal(value: float) -> str:
    """A float of the compute dtype."""
    if math.isnan(value):
        return 'T(__builtin_nan(""))'
    if math.isinf(value):
        return "T(__builtin_inf())" if value > 0 else "T(-__builtin_inf())"
    return f"T({float(value)!r})"


class _Body:
    """The lines of a program: what all elements share, and what each computes."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.shared: list[str] = []
        self.each: list[str] = []
        tensors = len(program.tensors)
        self._vector = [k < tensors for k in range(program.inputs)]
        self._truth = [False] * program.inputs
        for op in program.ops:
            self._operation(op.name, op.arguments)

    def vector(self, ref: Ref) -> bool:
        """Whether a value differs from element to element."""
        return isinstance(ref, int) and self._vector[ref]

    def name(self, ref: Ref) -> str:
        return f"v{ref}" if isinstance(ref, int) else literal(ref)

    def _operation(self, name: str, arguments: tuple[Ref, ...]) -> None:
        k = len(self._vector)
        varies = any(self.vector(a) for a in arguments)
        given = [self.name(a) for a in arguments]
        if varies and name in _ALIKE:
            keep = {0} if name == "where" and not self.vector(arguments[0]) else set()
            if name == "lerp" and not self.vector(arguments[2]):
                keep = {2}
            truths = {i for i, a in enumerate(arguments) if isinstance(a, int) and self._truth[a]}
            given = [g if i in keep | truths else f"all({g})" for i, g in enumerate(given)]
        truth = name in TRUTHS
        kind = ("M" if truth else "V") if varies else ("bool" if truth else "T")
        (self.each if varies else self.shared).append(f"const {kind} v{k} = {_OPERATIONS[name].format(*given)};")
        self._vector.append(varies)
        self._truth.append(truth)


def emit(program: Program) -> str:
    """The source of `run(void* pass)` and, for a program with terms, `gather(partial, first, tensors, total)`."""
    if program.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"a kernel computes in float32 or float64, not in {program.dtype}")
    single = program.dtype is torch.float32
    head = _HEAD % {
        "real": "float" if single else "double", "int": "int32_t" if single else "int64_t",
        "sqrt": "__builtin_sqrtf" if single else "__builtin_sqrt",
        "pow": "__builtin_powf" if single else "__builtin_pow",
        "to_float": "v" if single else "__builtin_convertvector(v, F)",
        "from_float": "v" if single else "__builtin_convertvector(v, V)",
        "half": _HALF if _uses_half(program) else "",
        "double": _DOUBLE if any(d is torch.float64 for _, d in program.tensors) else "",
        "codes": emit_codes.CPP if program.coded else "",
    }  # fmt: skip
    body = _Body(program)
    names, terms = program.names, range(len(program.terms))
    at = {name: j for j, name in enumerate(names)}
    types = {name: _STORED[dtype] for name, dtype in program.tensors}
    coded = program.coded
    step_types = types | dict.fromkeys(coded, "float")  # of codes, what they stand for
    pointers = ", ".join(f"{step_types[k]}* p_{k}" for k in names)
    here = {k: f"b_{k} + (q - begin)" if k in coded else f"p_{k} + q" for k in names}
    block = BLOCK if coded else 1024 if terms else 0
    first_sum = len(names) + len(program.numbers)
    noisy = [w for w in program.writes if w.noisy]
    lines = [
        'extern "C" void run(void* data) {',
        "Pass& p = *(Pass*)data;",
        "for (int64_t c; (c = __atomic_fetch_add(&p.next, 1, __ATOMIC_RELAXED)) < p.chunks;) {",
        "const int64_t i = p.which[c], a = p.where[c], row = p.row[i];",
        *([f"double* const partial = p.partial + c * {len(terms)};"] if terms else []),
        "if (row < 0) { " + " ".join(f"partial[{j}] = 0;" for j in terms) + " continue; }",
        "const int64_t n = p.sizes[i] - a < p.chunk ? p.sizes[i] - a : p.chunk;",
        *(f"{types[k]}* const p_{k} = ({types[k]}*)p.table[{j} * p.tensors + i] + a;" for k, j in at.items()),
        *(
            f"float* const p_{k}{SCALE} = (float*)p.table[{len(names) + j} * p.tensors + i] + a / {BLOCK};"
            for j, k in enumerate(coded)
        ),
        *(_number("numbers", "row", j, len(program.numbers), len(names)) for j in range(len(program.numbers))),
        *(_number("sums", "i", j, len(program.sums), first_sum) for j in range(len(program.sums))),
        *body.shared,
        *(f"const uint32_t key_{w.tensor} = p.keys[i] + {at[w.tensor]}u * 0x7FEB352Du;" for w in noisy),
        *(["const uint32_t origin = (uint32_t)(p.origin[i] + a);"] if noisy else []),
        *(f"double total{j} = 0;" for j in terms),
        f"auto part = [&]({pointers}, auto valid, uint32_t element, V* sum) __attribute__((always_inline)) {{",
        *(f"const V v{j} = load(p_{k});" for k, j in at.items()),
        *body.each,
        *(f"sum[{j} * PARTS] += where(valid, all({body.name(t)}), all(0));" for j, t in enumerate(program.terms)),
        *(
            f"store(p_{w.tensor}, all({body.name(w.value)})"
            f"{f', key_{w.tensor}, element' if w.noisy and w.tensor not in coded else ''});"
            for w in program.writes
        ),
        "};",
        f"auto step = [&]({pointers}, auto valid, uint32_t element, V* sum) __attribute__((always_inline)) {{",
        *(f"__builtin_prefetch((const char*)p_{k} + {_AHEAD});" for k in names),
        f"for (int w = 0; w < PARTS; w++) part({', '.join(f'p_{k} + w * W' for k in names)}, valid(w), "
        "element + w * W, sum + w);",
        "};",
        "auto every = [](int) { return true; };",
        "int64_t q = 0;",
        *(_streams(program) if terms and len(names) <= 2 and not coded else []),
        "while (q < n) {",
        f"const int64_t begin = q, stop = {f'q + {block} < n ? q + {block} : n' if block else 'n'};",
        *(f"float b_{k}[{BLOCK}]; decode(p_{k} + q, p_{k}{SCALE}[q / {BLOCK}], b_{k}, stop - q);" for k in coded),
        f"V sum[{max(1, len(terms))} * PARTS] = {{}};",
        f"for (; q + L <= stop; q += L) step({', '.join(here.values())}, every, {_element(noisy)}, sum);",
        "if (q < stop) {  // fewer than L: in copies",
        "const int64_t left = stop - q;",
        "auto valid = [&](int w) { M m; for (int l = 0; l < W; l++) m[l] = w * W + l < left ? -1 : 0; return m; };",
        *(
            f"{step_types[k]} rest_{k}[L] = {{}}; memcpy(rest_{k}, {p}, left * sizeof *rest_{k});"
            for k, p in here.items()
        ),
        f"step({', '.join(f'rest_{k}' for k in names)}, valid, {_element(noisy)}, sum);",
        *(f"memcpy({here[k]}, rest_{k}, left * sizeof *rest_{k});" for k in program.written),
        "q = stop;",
        "}",
        *(
            f"encode(p_{k} + begin, p_{k}{SCALE} + begin / {BLOCK}, b_{k}, stop - begin, key_{k}, "
            "origin + (uint32_t)begin);"
            for k in program.written
            if k in coded
        ),
        *(f"total{j} += add_up(sum + {j} * PARTS);" for j in terms),
        "}",
        *(f"partial[{j}] = total{j};" for j in terms),
        "}",
        "}",
    ]
    if terms:
        lines.append(_GATHER % {"terms": len(terms)})
    return head + "\n".join(lines) + "\n"


def _streams(program: Program) -> list[str]:
    """A whole chunk of a pass that reads little else than a gradient: one stream of reads alone leaves memory waiting,
    so that four are read at once. What they add up is added up as if they came one after the other."""
    names, terms = program.names, len(program.terms)
    block, streams = 1024, 4
    each = CHUNK // streams
    noisy = [w for w in program.writes if w.noisy]
    at = f"q + s * {each}"
    pointers = ", ".join(f"p_{k} + {at}" for k in names)
    element = f"origin + (uint32_t)({at})" if noisy else "0"
    return [
        f"if (n == {CHUNK}) {{",
        f"double part[{streams}][{each // block}][{terms}];",
        f"for (int64_t b = 0; b < {each // block}; b++) {{",
        f"V sum[{streams}][{terms} * PARTS] = {{}};",
        f"for (q = b * {block}; q < (b + 1) * {block}; q += L)",
        f"for (int64_t s = 0; s < {streams}; s++) step({pointers}, every, {element}, sum[s]);",
        f"for (int64_t s = 0; s < {streams}; s++)",
        f"for (int j = 0; j < {terms}; j++) part[s][b][j] = add_up(sum[s] + j * PARTS);",
        "}",
        f"for (int64_t s = 0; s < {streams}; s++) for (int64_t b = 0; b < {each // block}; b++) {{",
        *(f"total{j} += part[s][b][{j}];" for j in range(terms)),
        "}",
        "q = n;",
        "}",
    ]


#: a tensor's chunks, added in their order
_GATHER = """extern "C" void gather(const double* partial, const int64_t* first, int64_t tensors, double* total) {
    for (int64_t i = 0; i < tensors; i++)
        for (int j = 0; j < %(terms)d; j++) {
            double sum = 0;
            for (int64_t c = first[i]; c < first[i + 1]; c++) sum += partial[c * %(terms)d + j];
            total[i * %(terms)d + j] = sum;
        }
}"""


def _number(table: str, row: str, j: int, width: int, value: int) -> str:
    return f"const T v{value + j} = T(p.{table}[{row} * {width} + {j}]);"


def _element(noisy: list[Write]) -> str:
    return "origin + (uint32_t)q" if noisy else "0"


def _uses_half(program: Program) -> bool:
    return any(d is torch.float16 for _, d in program.tensors) or any(op.name == "f16" for op in program.ops)
