// Float rows and float weights as PyTorch has them, (O, I) by rows: each weight is read once and meets a few rows.
//
// This is for generation, where reading the weights is all that takes time; nothing is laid out anew for it.
#include "matrix.h"

namespace {

constexpr int ROWS = 4;

// Sums over the inputs of R rows with one output's weights.
template <int R>
void dots(const Matrix& m, const float* x, const float* w, float* results) {
    f32x8 sums[R][2] = {};
    int64_t k = 0;
    for (; k + 2 * LANES <= m.inputs; k += 2 * LANES) {
        const f32x8 first = load<f32x8>(w + k), second = load<f32x8>(w + k + LANES);
        unrolled<R>([&](auto r) {
            sums[r][0] += first * load<f32x8>(x + r * m.inputs + k);
            sums[r][1] += second * load<f32x8>(x + r * m.inputs + k + LANES);
        });
    }
    for (; k < m.inputs; k += LANES) {
        const int64_t count = m.inputs - k;
        const f32x8 rest = load_some(w + k, count);
        unrolled<R>([&](auto r) { sums[r][0] += rest * load_some(x + r * m.inputs + k, count); });
    }
    unrolled<R>([&](auto r) { results[r] = sum_of(sums[r][0] + sums[r][1]); });
}

}  // namespace

void multiply_plain(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to) {
    for (int64_t column = panel * COLUMNS; column < std::min(end * COLUMNS, m.outputs); column++) {
        const float* w = (const float*)m.panels + column * m.inputs;
        const float bias = m.bias ? m.bias[column] : 0.0f;
        in_tiles<ROWS>(first, last, [&](auto R, int64_t row) {
            float results[R];
            dots<R>(m, rows.x + row * m.inputs, w, results);
            for (int64_t r = 0; r < R; r++) {
                float* place = to.values + (row + r) * to.stride + column;
                *place = results[r] + bias + (to.add ? *place : 0.0f);
            }
        });
    }
}
