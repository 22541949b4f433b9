// The gate of a gated MLP.
#pragma once

#include "simd.h"

// silu(gate) * up.
static inline void gate_row(const float* gate, const float* up, int64_t width, float* to) {
    for (int64_t i = 0; i < width; i += VECTOR) {
        const int64_t some = width - i;
        const f32v g = load_some<f32v>(gate + i, some);
        store_some(to + i, g / (1.0f + exponential(-g)) * load_some<f32v>(up + i, some), some);
    }
}
