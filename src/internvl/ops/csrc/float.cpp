// Float rows and weights stored as float32 or bfloat16; products and sums are float32 either way.
//
// A panel has 16 outputs for each input. The tile is 6 rows x 16 outputs. Inputs are taken in stretches, so
// that their part of a panel stays in the first cache while the rows pass; sums of stretches meet in the output.
#include "matrix.h"

namespace {

constexpr int ROWS = 6;
constexpr int64_t STRETCH = 256;

static inline f32x8 weights(const float* from) { return load<f32x8>(from); }

// Eight bfloat16 values: the upper halves of float32.
static inline f32x8 weights(const uint16_t* from) {
#if defined(__AVX2__)
    return (f32x8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
    i32x8 bits;
    for (int lane = 0; lane < LANES; lane++) bits[lane] = int32_t(uint32_t(from[lane]) << 16);
    return (f32x8)bits;
#endif
}

template <int R, class W>
void tile(const Matrix& m, const float* x, const W* b, int64_t length, int64_t row, int64_t column, const Sink& to) {
    f32x8 sums[R][2] = {};
    for (int64_t k = 0; k < length; k++, b += COLUMNS) {
        const f32x8 left = weights(b), right = weights(b + LANES);
        UNROLL for (int r = 0; r < R; r++) {
            const f32x8 value = splat(x[r * m.inputs + k]);
            sums[r][0] += value * left;
            sums[r][1] += value * right;
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        put(m, to, row + r, column, sums[r][0]);
        put(m, to, row + r, column + LANES, sums[r][1]);
    }
}

template <class W>
void stretches(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, const Sink& to) {
    const int64_t column = panel * COLUMNS;
    for (int64_t k = 0; k < m.inputs; k += STRETCH) {
        const int64_t length = std::min(STRETCH, m.inputs - k);
        const W* b = (const W*)m.panels + (panel * m.padded + k) * COLUMNS;
        Matrix part = m;
        if (k) part.bias = nullptr;
        const Sink sink = {to.values, to.stride, to.add || k > 0};
        int64_t row = first;
        const float* x = rows.x + k;
        for (; row + ROWS <= last; row += ROWS) tile<ROWS>(part, x + row * m.inputs, b, length, row, column, sink);
        x += row * m.inputs;
        switch (last - row) {
            case 5: tile<5>(part, x, b, length, row, column, sink); break;
            case 4: tile<4>(part, x, b, length, row, column, sink); break;
            case 3: tile<3>(part, x, b, length, row, column, sink); break;
            case 2: tile<2>(part, x, b, length, row, column, sink); break;
            case 1: tile<1>(part, x, b, length, row, column, sink); break;
        }
    }
}

}  // namespace

void multiply_float(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, const Sink& to) {
    if (m.kind == FLOAT32) stretches<float>(m, rows, first, last, panel, to);
    else stretches<uint16_t>(m, rows, first, last, panel, to);
}
