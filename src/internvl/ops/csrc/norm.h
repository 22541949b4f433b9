// The norm of a decoder's rows.
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
