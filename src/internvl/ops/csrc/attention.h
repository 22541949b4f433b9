// Attention of one head among the patches of one tile.
#pragma once

#include "tiles.h"

// qkv (P, 3 H D), each of the three by heads; out (P, H D). D is a multiple of 16.
void attend_tile(const float* qkv, int64_t patches, int64_t heads, int64_t width, int64_t head, float* out);

// The same with everything rounded to 16 bits (attention16.cpp).
void attend_tile_16(const float* qkv, int64_t patches, int64_t heads, int64_t width, int64_t head, float* out);

// Rows of a tile's head lie pages apart, where no processor foresees them: given the row that is needed AHEAD rows later.
constexpr int64_t AHEAD = 6;
static inline void fetch(const float* row, int64_t width) {
    for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(row + i);
}

constexpr float LOG2E = 1.44269504f;  // scores are kept times this: powers of two need no division with remainder

// 2^x for x up to 0, and 2^-126 for what is less; NaN stays NaN. `factors` are those of a polynomial for 2^x, |x| <= 1/2,
// the highest first.
template <int N>
static inline f32v power(f32v x, const float (&factors)[N]) {
    const f32v bounded = larger(splat<f32v>(-126.0f), x), shifted = bounded + 0x1.8p23f;  // its lowest bits: the nearest integer
    const f32v f = bounded - (shifted - 0x1.8p23f);
    f32v p = splat<f32v>(factors[0]);
    unrolled<N - 1>([&](auto i) { p = p * f + factors[i + 1]; });
    return p * (f32v)(((i32v)shifted + 127) << 23);
}
