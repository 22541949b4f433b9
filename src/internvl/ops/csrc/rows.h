// What generation and prompts have in common: the norm of a row, and the turn of a head.
#pragma once

#include "simd.h"

// x over its root mean square, times the weight; `to` may be `x`.
static inline void rms_norm_row(const float* x, const float* weight, int64_t width, double eps, float* to) {
    f32v sums = {};
    for (int64_t i = 0; i < width; i += VECTOR) {
        const f32v v = load_some<f32v>(x + i, width - i);
        sums += v * v;
    }
    const float factor = 1.0f / std::sqrt(sum_of(sums) / float(width) + float(eps));
    for (int64_t i = 0; i < width; i += VECTOR) {
        const f32v v = load_some<f32v>(x + i, width - i) * factor * load_some<f32v>(weight + i, width - i);
        store_some(to + i, v, width - i);
    }
}

// The halves of a head turned by the angles of its token; `to` may be `x`.
static inline void turn_head(const float* x, const float* cos, const float* sin, int64_t width, float* to) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < half; i += VECTOR) {
        const int64_t some = half - i;
        const f32v left = load_some<f32v>(x + i, some), right = load_some<f32v>(x + half + i, some);
        store_some(to + i, left * load_some<f32v>(cos + i, some) - right * load_some<f32v>(sin + i, some), some);
        store_some(to + half + i, right * load_some<f32v>(cos + half + i, some) + left * load_some<f32v>(sin + half + i, some),
                   some);
    }
}
