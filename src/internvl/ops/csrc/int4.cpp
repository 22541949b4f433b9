// Rows of eight bits and weights of four: w = scale * q + least, q in 0..15, scale and least by groups of 64 inputs.
//
// A panel has, for each group, 16 times 32 bytes: of four inputs, those of outputs 0..7 in the low halves of the bytes
// and those of outputs 8..15 in the high ones; then 16 scales and 16 leasts as half floats. So a weight takes 4.5 bits.
// Products of a value below 16 and a signed byte leave room to add eight of them in 16 bits.
#include "matrix.h"

namespace {

constexpr int ROWS = 4 * TALL;
constexpr int64_t QUADS = GROUP / 4;
constexpr int64_t GROUP_BYTES = QUADS * 32 + 4 * COLUMNS;

// Four inputs of a panel's outputs as bytes, and what their products with rows are added in.
#if defined(__AVX512VNNI__)
typedef i32v Partial;

static inline void unfold(const uint8_t* from, i32v (&to)[PER_PANEL]) {
    const __m256i both = _mm256_loadu_si256((const __m256i*)from), low = _mm256_set1_epi8(15);
    const __m512i bytes = _mm512_inserti64x4(_mm512_castsi256_si512(both), _mm256_srli_epi16(both, 4), 1);
    to[0] = (i32v)_mm512_and_si512(bytes, _mm512_broadcast_i64x4(low));
}

static inline Partial add_products(Partial total, i32v weights, i32v row) { return dot4(total, weights, row); }
static inline i32v whole(Partial total) { return total; }
#else
typedef i16x16 Partial;

static inline void unfold(const uint8_t* from, i32v (&to)[PER_PANEL]) {
    const u8x32 low = (u8x32)splat4("\x0f\x0f\x0f\x0f"), both = load<u8x32>(from);
    to[0] = (i32v)(both & low);
    to[1] = (i32v)((u8x32)((i16x16)both >> 4) & low);
}

static inline Partial add_products(Partial total, i32v weights, i32v row) { return dot2(total, weights, row); }
static inline i32v whole(Partial total) { return add_pairs(total); }
#endif

template <int R, int P>
void group(const uint8_t* a, int64_t stride, const uint8_t* b, int64_t apart, const float* sums, int64_t sums_stride,
           f32v (&total)[R][P * PER_PANEL]) {
    constexpr int V = P * PER_PANEL;
    i32v exact[R][V] = {};
    for (int half = 0; half < 2; half++) {
        Partial part[R][V] = {};
        for (int64_t k = half * QUADS / 2; k < (half + 1) * QUADS / 2; k++) {
            i32v w[P][PER_PANEL];
            unrolled<P>([&](auto p) { unfold(b + p * apart + k * 32, w[p]); });
            unrolled<R>([&](auto r) {
                const i32v x = splat4<i32v>(a + r * stride + k * 4);
                unrolled<V>([&](auto v) {
                    part[r][v] = add_products(part[r][v], w[v / PER_PANEL][v % PER_PANEL], x);
                });
            });
        }
        unrolled<R>([&](auto r) { unrolled<V>([&](auto v) { exact[r][v] += whole(part[r][v]); }); });
    }
    unrolled<V>([&](auto v) {
        const uint16_t* scales = (const uint16_t*)(b + v / PER_PANEL * apart + QUADS * 32) + v % PER_PANEL * VECTOR;
        const f32v scale = from_half(scales), least = from_half(scales + COLUMNS);
        unrolled<R>([&](auto r) { total[r][v] += to_float(exact[r][v]) * scale + least * sums[r * sums_stride]; });
    });
}

template <int R, int P>
void tile(const Matrix& m, const Rows& rows, int64_t row, int64_t panel, const Sink& to) {
    f32v total[R][P * PER_PANEL] = {};
    const int64_t groups = m.padded / GROUP, apart = groups * GROUP_BYTES;
    const uint8_t* b = (const uint8_t*)m.panels + panel * apart;
    for (int64_t g = 0; g < groups; g++)
        group<R, P>(rows.q + row * m.padded + g * GROUP, m.padded, b + g * GROUP_BYTES, apart, rows.sums + row * groups + g,
                    groups, total);
    unrolled<P * PER_PANEL>([&](auto v) {
        unrolled<R>([&](auto r) { put(m, to, row + r, panel * COLUMNS + v * VECTOR, total[r][v] * rows.scale[row + r]); });
    });
}

}  // namespace

void multiply_int4(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to) {
    in_strips(last - first, panel, end, [&](auto P, int64_t strip) {
        in_tiles<ROWS>(first, last, [&](auto R, int64_t row) { tile<R, P>(m, rows, row, strip, to); });
    });
}
