// What a prompt's rows go through between products and attention: a pass over memory where operators take five.
#include "rows.h"

// x (rows, width) to out (rows, width).
extern "C" void rms_norm(const float* x, int64_t rows, int64_t width, const float* weight, double eps, float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) rms_norm_row(x + row * width, weight, width, eps, out + row * width);
}

// Turns the halves of each head by the angles of its token: x (tokens, heads, width), tokens `stride` apart, cos and sin
// (tokens, width), out (tokens, heads, width).
extern "C" void rotate(const float* x, int64_t tokens, int64_t stride, int64_t heads, int64_t width, const float* cos,
                       const float* sin, float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++)
            turn_head(x + token * stride + head * width, cos + token * width, sin + token * width, width,
                      out + (token * heads + head) * width);
}
