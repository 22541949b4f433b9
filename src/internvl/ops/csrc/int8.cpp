// Rows and weights of eight bits, exact in integers.
//
// A panel has, for each four inputs, four bytes of output 0, four of output 1, ... On AVX2 the tile of the innermost
// loop is 5 rows x 16 outputs: 10 sums, 2 vectors of weights, one of rows, one of ones and one of products fit its 16
// registers, and its two multiplying ports have work in every cycle. With AVX-512 it is 10 rows x 32 outputs.
//
// Rows are unsigned (0..255), weights signed. Two neighbouring products are added in 16 bits, which cannot overflow
// because the scale of an output was chosen so that neighbouring weights add up to at most 128 in magnitude, and those of
// opposite signs cannot (`ops.packed`). So the sums equal those of any other machine.
#include "matrix.h"

namespace {

constexpr int ROWS = 5 * TALL;

template <int R, int P>
void tile(const Matrix& m, const Rows& rows, int64_t row, int64_t panel, const Sink& to) {
    constexpr int V = P * PER_PANEL;
    i32v sums[CHAINS<R>][R][V] = {};
    const uint8_t* a = rows.q + row * m.padded;
    const int64_t apart = COLUMNS * m.padded;
    const int8_t* b = (const int8_t*)m.panels + panel * apart;
    in_chains<CHAINS<R>>(m.padded / 4, [&](auto chain, int64_t k) {
        i32v w[V];
        unrolled<V>([&](auto v) { w[v] = load<i32v>(in_panels(b + k * 4 * COLUMNS, apart, v, 4)); });
        unrolled<R>([&](auto r) {
            const i32v x = splat4<i32v>(a + r * m.padded + k * 4);
            unrolled<V>([&](auto v) { sums[chain][r][v] = dot4(sums[chain][r][v], x, w[v]); });
        });
    });
    join(sums);
    unrolled<V>([&](auto v) {
        const int64_t column = panel * COLUMNS + v * VECTOR;
        const f32v scale = load<f32v>(m.scale + column);
        const i32v sum = load<i32v>(m.sum + column);
        unrolled<R>([&](auto r) {
            const i32v exact = sums[0][r][v] - sum * rows.zero[row + r];
            put(m, to, row + r, column, to_float(exact) * (scale * rows.scale[row + r]));
        });
    });
}

}  // namespace

void multiply_int8(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to) {
    in_strips(last - first, panel, end, [&](auto P, int64_t strip) {
        in_tiles<ROWS>(first, last, [&](auto R, int64_t row) { tile<R, P>(m, rows, row, strip, to); });
    });
}
