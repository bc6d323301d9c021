"""The codes of `hf_optim.engine.int8_codes` as C++ and as Triton: the same operations in the same order."""

from __future__ import annotations

#: a block at a time; a buffer of floats stands for its codes
CPP = """typedef __INT8_TYPE__ int8_t; typedef __UINT8_TYPE__ uint8_t;
INLINE void decode(const int8_t* codes, float scale, float* out, int64_t n) {
    for (int64_t l = 0; l < n; l++) { const float r = codes[l] / 127.0f; out[l] = scale * (r * __builtin_fabsf(r)); }
}
INLINE void decode(const uint8_t* codes, float scale, float* out, int64_t n) {
    for (int64_t l = 0; l < n; l++) { const float r = codes[l] / 255.0f; out[l] = scale * ((r * r) * (r * r)); }
}
INLINE float greatest(const float* values, int64_t n) {
    float out = 0;
    for (int64_t l = 0; l < n; l++) {
        const float size = __builtin_fabsf(values[l]);
        const float known = size != size ? __builtin_inff() : size;
        out = known > out ? known : out;
    }
    return out;
}
INLINE float chance(uint32_t element, uint32_t key) {
    uint32_t h = (element * 0x9E3779B1u) ^ key;
    h ^= h >> 15;
    h *= 0x846CA68Bu;
    return (float)(int32_t)(h >> 16) * 0x1p-16f;
}
INLINE float rounded(const int8_t*, float share, float value, float bits) {
    const float low = __builtin_floorf(__builtin_sqrtf(share) * 127.0f);
    const float code = low + (bits < (share * 16129.0f - low * low) / (2.0f * low + 1.0f) ? 1.0f : 0.0f);
    return value < 0 ? -code : code;
}
INLINE float rounded(const uint8_t*, float share, float value, float bits) {
    const float low = __builtin_floorf(__builtin_sqrtf(__builtin_sqrtf(share)) * 255.0f), square = low * low;
    const float gap = (2.0f * low + 1.0f) * (2.0f * square + 2.0f * low + 1.0f);
    const float code = low + (bits < (share * 4228250625.0f - square * square) / gap ? 1.0f : 0.0f);
    return code < 1.0f && value != 0 ? 1.0f : code;
}
template <typename C> INLINE void encode(C* codes, float* scale, const float* in, int64_t n, uint32_t key, uint32_t e) {
    const float most = greatest(in, n);
    *scale = most;
    if (most > 0 && most - most == 0)
        for (int64_t l = 0; l < n; l++)
            codes[l] = (C)(int32_t)rounded(codes, __builtin_fabsf(in[l]) / most, in[l], chance(e + (uint32_t)l, key));
    else
        for (int64_t l = 0; l < n; l++) codes[l] = 0;
}"""

#: a chunk at a time
TRITON = '''

@triton.jit
def decoded(code, scale, SIGNED: tl.constexpr):
    """`hf_optim.engine.int8_codes.decode`."""
    if SIGNED:
        share = tl.div_rn(code.to(tl.float32), tl.full((), 127.0, tl.float32))
        return scale * (share * tl.abs(share))
    share = tl.div_rn(code.to(tl.float32), tl.full((), 255.0, tl.float32))
    return scale * ((share * share) * (share * share))


@triton.jit
def encoded(value, inside, element, key, slot, SIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """`hf_optim.engine.int8_codes.encode`: codes as float32 (CHUNK,), and the scales of their blocks."""
    size = tl.abs(value)
    size = tl.where(inside, tl.where(size != size, float("inf"), size), 0.0)
    scales = tl.max(tl.reshape(size, (CHUNK // BLOCK, BLOCK)), 1)
    scale = tl.reshape(tl.broadcast_to(tl.expand_dims(scales, 1), (CHUNK // BLOCK, BLOCK)), (CHUNK,))
    usable = (scale > 0.0) & (scale < float("inf"))
    share = tl.where(usable, tl.div_rn(tl.where(usable, size, 0.0), tl.where(usable, scale, 1.0)), 0.0)
    h = (element.to(tl.uint32) * 0x9E3779B1) ^ (key + slot)
    h = h ^ (h >> 15)
    h = h * 0x846CA68B
    chance = (h >> 16).to(tl.int32).to(tl.float32) * 0.0000152587890625
    if SIGNED:
        low = tl.floor(tl.sqrt_rn(share) * 127.0)
        odds = tl.div_rn(share * 16129.0 - low * low, 2.0 * low + 1.0)
        code = low + tl.where(chance < odds, 1.0, 0.0)
        code = tl.where(value < 0.0, -code, code)
    else:
        low = tl.floor(tl.sqrt_rn(tl.sqrt_rn(share)) * 255.0)
        square = low * low
        odds = tl.div_rn(share * 4228250625.0 - square * square, (2.0 * low + 1.0) * (2.0 * square + 2.0 * low + 1.0))
        code = low + tl.where(chance < odds, 1.0, 0.0)
        code = tl.where((code < 1.0) & (size > 0.0) & usable, 1.0, code)
    return code, scales
'''
