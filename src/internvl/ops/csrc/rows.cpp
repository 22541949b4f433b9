// What a prompt's rows go through between products and attention: a pass over memory where operators take five.
#include "norm.h"

// x (rows, width) to out (rows, width).
extern "C" void rms_norm(const float* x, int64_t rows, int64_t width, const float* weight, double eps, float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) rms_norm_row(x + row * width, weight, width, eps, out + row * width);
}

// Turns the halves of each head by the angles of its token: x (tokens, heads, width), tokens `stride` apart, cos and sin
// (tokens, width), out (tokens, heads, width).
extern "C" void rotate(const float* x, int64_t tokens, int64_t stride, int64_t heads, int64_t width, const float* cos,
                       const float* sin, float* out) {
    const int64_t half = width / 2;
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < tokens; token++) {
        const float *c = cos + token * width, *s = sin + token * width;
        for (int64_t head = 0; head < heads; head++) {
            const float* from = x + token * stride + head * width;
            float* to = out + (token * heads + head) * width;
            for (int64_t i = 0; i < half; i += VECTOR) {
                const int64_t some = half - i;
                const f32v left = load_some<f32v>(from + i, some), right = load_some<f32v>(from + half + i, some);
                store_some(to + i, left * load_some<f32v>(c + i, some) - right * load_some<f32v>(s + i, some), some);
                store_some(to + half + i, right * load_some<f32v>(c + half + i, some) + left * load_some<f32v>(s + half + i, some),
                           some);
            }
        }
    }
}
