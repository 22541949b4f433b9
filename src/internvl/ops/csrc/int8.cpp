// Rows and weights of eight bits, exact in integers.
//
// A panel has, for each four inputs, four bytes of output 0, four of output 1, ... The tile of the innermost loop is
// 5 rows x 16 outputs: 10 sums, 2 vectors of weights, one of rows, one of ones and one of products fit the
// 16 registers of AVX2, and its two multiplying ports have work in every cycle.
//
// Rows are unsigned (0..255), weights signed. Two neighbouring products are added in 16 bits, which cannot overflow
// because the scale of an output was chosen so that neighbouring weights have magnitudes of at most 128 together
// (`ops.packed`). So the sums equal those of any other machine.
#include "matrix.h"

namespace {

constexpr int ROWS = 5;

template <int R>
void tile(const Matrix& m, const Rows& rows, int64_t row, int64_t panel, const Sink& to) {
    i32x8 sums[R][2] = {};
    const uint8_t* a = rows.q + row * m.padded;
    const int8_t* b = (const int8_t*)m.panels + panel * COLUMNS * m.padded;
    for (int64_t k = 0; k < m.padded; k += 4, b += 4 * COLUMNS) {
        const i32x8 left = load<i32x8>(b), right = load<i32x8>(b + 32);
        UNROLL for (int r = 0; r < R; r++) {
            const i32x8 x = splat4(a + r * m.padded + k);
            sums[r][0] = dot4(sums[r][0], x, left);
            sums[r][1] = dot4(sums[r][1], x, right);
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        const int64_t column = panel * COLUMNS + half * LANES;
        const f32x8 scale = load<f32x8>(m.scale + column);
        const i32x8 sum = load<i32x8>(m.sum + column);
        UNROLL for (int r = 0; r < R; r++) {
            const i32x8 exact = sums[r][half] - sum * rows.zero[row + r];
            put(m, to, row + r, column, to_float(exact) * (scale * rows.scale[row + r]));
        }
    }
}

}  // namespace

void multiply_int8(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, const Sink& to) {
    for (; first + ROWS <= last; first += ROWS) tile<ROWS>(m, rows, first, panel, to);
    switch (last - first) {
        case 4: tile<4>(m, rows, first, panel, to); break;
        case 3: tile<3>(m, rows, first, panel, to); break;
        case 2: tile<2>(m, rows, first, panel, to); break;
        case 1: tile<1>(m, rows, first, panel, to); break;
    }
}
