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
        UNROLL for (int r = 0; r < R; r++) {
            sums[r][0] += first * load<f32x8>(x + r * m.inputs + k);
            sums[r][1] += second * load<f32x8>(x + r * m.inputs + k + LANES);
        }
    }
    for (; k < m.inputs; k += LANES) {
        const int64_t count = m.inputs - k;
        const f32x8 rest = load_some(w + k, count);
        UNROLL for (int r = 0; r < R; r++) sums[r][0] += rest * load_some(x + r * m.inputs + k, count);
    }
    UNROLL for (int r = 0; r < R; r++) results[r] = sum8(sums[r][0] + sums[r][1]);
}

}  // namespace

void multiply_plain(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, const Sink& to) {
    const int64_t end = std::min((panel + 1) * COLUMNS, m.outputs);
    for (int64_t column = panel * COLUMNS; column < end; column++) {
        const float* w = (const float*)m.panels + column * m.inputs;
        const float bias = m.bias ? m.bias[column] : 0.0f;
        for (int64_t row = first; row < last; row += ROWS) {
            const float* x = rows.x + row * m.inputs;
            const int64_t count = std::min<int64_t>(last - row, ROWS);
            float results[ROWS];
            switch (count) {
                case 4: dots<4>(m, x, w, results); break;
                case 3: dots<3>(m, x, w, results); break;
                case 2: dots<2>(m, x, w, results); break;
                default: dots<1>(m, x, w, results);
            }
            for (int64_t r = 0; r < count; r++) {
                float* place = to.values + (row + r) * to.stride + column;
                *place = results[r] + bias + (to.add ? *place : 0.0f);
            }
        }
    }
}
