// Float rows and weights stored as float32 or bfloat16; products and sums are float32 either way.
//
// A panel has 16 outputs for each input. The tile is 6 rows x 16 outputs, with AVX-512 12 x 32. Inputs are taken in stretches, so
// that their part of a panel stays in the first cache while the rows pass. Where rows come in parts (`multiply_rows`), sums
// of parts meet in the output.
#include "matrix.h"

namespace {

constexpr int ROWS = 6 * TALL;
constexpr int64_t STRETCH = 256 / STRIP;
constexpr int64_t LINE = 64;  // bytes of a cache line
constexpr int64_t KEPT_ROWS = 120;  // whose sums wait in the first cache from stretch to stretch of their inputs

static inline f32v weights(const float* from) { return load<f32v>(from); }

// bfloat16 values: the upper halves of float32.
static inline f32v weights(const uint16_t* from) {
#if defined(__AVX512VNNI__)
    return (f32v)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
    return (f32v)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
    i32v bits;
    for (int lane = 0; lane < VECTOR; lane++) bits[lane] = int32_t(uint32_t(from[lane]) << 16);
    return (f32v)bits;
#endif
}

// Sums of R rows over `length` inputs with P panels, from and to `kept`, which holds as many for each row.
template <int R, int P, class W>
void tile(const float* x, int64_t stride, const W* b, int64_t apart, int64_t length, bool begins, float* kept) {
    constexpr int V = P * PER_PANEL;
    f32v sums[CHAINS<R>][R][V] = {};
    if (!begins) unrolled<R>([&](auto r) {
        unrolled<V>([&](auto v) { sums[0][r][v] = load<f32v>(kept + (r * V + v) * VECTOR); });
    });
    in_chains<CHAINS<R>>(length, [&](auto chain, int64_t k) {
        f32v w[V];
        unrolled<V>([&](auto v) { w[v] = weights(in_panels(b + k * COLUMNS, apart, v)); });
        unrolled<R>([&](auto r) {
            const f32v value = splat<f32v>(x[r * stride + k]);
            unrolled<V>([&](auto v) { sums[chain][r][v] += value * w[v]; });
        });
    });
    join(sums);
    unrolled<R>([&](auto r) { unrolled<V>([&](auto v) { store(kept + (r * V + v) * VECTOR, sums[0][r][v]); }); });
}

// Meanwhile the stretch at `next` is fetched: a weight of several megabytes passes but once for all of these rows.
template <int P, class W>
void tiles(int64_t count, const float* x, int64_t stride, const W* b, int64_t apart, int64_t length, bool begins, float* kept,
           const W* next) {
    const int64_t part = length * COLUMNS * sizeof(W) * ROWS / std::max<int64_t>(count, ROWS);
    in_tiles<ROWS>(0, count, [&](auto R, int64_t row) {
        const char* ahead = (const char*)next + row / ROWS * part;
        if (R == ROWS)
            for (int p = 0; p < P; p++, ahead += apart * sizeof(W))
                for (int64_t byte = 0; byte < part; byte += LINE) __builtin_prefetch(ahead + byte);
        tile<R, P>(x + row * stride, stride, b, apart, length, begins, kept + row * P * COLUMNS);
    });
}

template <int P, class W>
void stretches(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, const Sink& to) {
    alignas(LINE) float kept[KEPT_ROWS * P * COLUMNS];
    const int64_t apart = m.padded * COLUMNS;
    const W* b = (const W*)m.panels + panel * apart;
    Matrix part = m;
    if (rows.from) part.bias = nullptr;
    const Sink sink = {to.values, to.stride, to.add || rows.from > 0, to.scale};
    for (; first < last; first += KEPT_ROWS) {
        const int64_t count = std::min(KEPT_ROWS, last - first), stretch = count == 1 ? rows.to : STRETCH;
        for (int64_t k = rows.from; k < rows.to; k += stretch) {
            const W* next = b + (k + stretch < rows.to ? k + stretch : P * m.padded + rows.from) * COLUMNS;
            tiles<P>(count, rows.x + first * rows.stride + k - rows.from, rows.stride, b + k * COLUMNS, apart,
                     std::min(stretch, rows.to - k), k == rows.from, kept, next);
        }
        for (int64_t r = 0; r < count; r++)
            for (int column = 0; column < P * COLUMNS; column += VECTOR)
                put(part, sink, first + r, panel * COLUMNS + column, load<f32v>(kept + r * P * COLUMNS + column));
    }
}

}  // namespace

void multiply_float(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to) {
    in_strips(last - first, panel, end, [&](auto P, int64_t strip) {
        if (m.kind == FLOAT32) stretches<P, float>(m, rows, first, last, strip, to);
        else stretches<P, uint16_t>(m, rows, first, last, strip, to);
    });
}
