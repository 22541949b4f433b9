// Float rows and weights stored as float32 or bfloat16; products and sums are float32 either way.
//
// A panel has 16 outputs for each input. The tile is 6 rows x 16 outputs. Inputs are taken in stretches, so
// that their part of a panel stays in the first cache while the rows pass. Where rows come in parts (`multiply_rows`), sums
// of parts meet in the output.
#include "matrix.h"

namespace {

constexpr int ROWS = 6;
constexpr int64_t STRETCH = 256;
constexpr int64_t LINE = 64;  // bytes of a cache line

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

// Sums of R rows over `length` inputs with one panel, from and to `kept`, which holds 16 for each row.
template <int R, class W>
void tile(const float* x, int64_t stride, const W* b, int64_t length, bool begins, float* kept) {
    f32x8 sums[R][2] = {};
    if (!begins)
        UNROLL for (int r = 0; r < R; r++)
            for (int half = 0; half < 2; half++) sums[r][half] = load<f32x8>(kept + r * COLUMNS + half * LANES);
    for (int64_t k = 0; k < length; k++, b += COLUMNS) {
        const f32x8 left = weights(b), right = weights(b + LANES);
        UNROLL for (int r = 0; r < R; r++) {
            const f32x8 value = splat(x[r * stride + k]);
            sums[r][0] += value * left;
            sums[r][1] += value * right;
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++) store(kept + r * COLUMNS + half * LANES, sums[r][half]);
}

// Meanwhile the stretch at `next` is fetched: a weight of several megabytes passes but once for all of these rows.
template <class W>
void tiles(int64_t count, const float* x, int64_t stride, const W* b, int64_t length, bool begins, float* kept, const W* next) {
    const char* ahead = (const char*)next;
    const int64_t part = length * COLUMNS * sizeof(W) * ROWS / std::max<int64_t>(count, ROWS);
    for (; count >= ROWS; count -= ROWS, x += ROWS * stride, kept += ROWS * COLUMNS) {
        for (int64_t byte = 0; byte < part; byte += LINE) __builtin_prefetch(ahead + byte);
        ahead += part;
        tile<ROWS>(x, stride, b, length, begins, kept);
    }
    switch (count) {
        case 5: tile<5>(x, stride, b, length, begins, kept); break;
        case 4: tile<4>(x, stride, b, length, begins, kept); break;
        case 3: tile<3>(x, stride, b, length, begins, kept); break;
        case 2: tile<2>(x, stride, b, length, begins, kept); break;
        case 1: tile<1>(x, stride, b, length, begins, kept); break;
    }
}

template <class W>
void stretches(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, const Sink& to) {
    alignas(64) float kept[FLOAT_ROWS * COLUMNS];
    Matrix part = m;
    if (rows.from) part.bias = nullptr;
    const Sink sink = {to.values, to.stride, to.add || rows.from > 0, to.scale};
    for (; first < last; first += FLOAT_ROWS) {
        const int64_t count = std::min(FLOAT_ROWS, last - first);
        for (int64_t k = rows.from; k < rows.to; k += STRETCH) {
            const W* b = (const W*)m.panels + panel * m.padded * COLUMNS;
            const W* next = b + (k + STRETCH < rows.to ? k + STRETCH : m.padded + rows.from) * COLUMNS;
            tiles(count, rows.x + first * rows.stride + k - rows.from, rows.stride, b + k * COLUMNS,
                  std::min(STRETCH, rows.to - k), k == rows.from, kept, next);
        }
        for (int64_t r = 0; r < count; r++)
            for (int half = 0; half < 2; half++)
                put(part, sink, first + r, panel * COLUMNS + half * LANES, load<f32x8>(kept + r * COLUMNS + half * LANES));
    }
}

}  // namespace

void multiply_float(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, const Sink& to) {
    if (m.kind == FLOAT32) stretches<float>(m, rows, first, last, panel, to);
    else stretches<uint16_t>(m, rows, first, last, panel, to);
}
