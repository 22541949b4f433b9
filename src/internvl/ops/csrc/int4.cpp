// Rows of eight bits and weights of four: w = scale * q + least, q in 0..15, scale and least by groups of 64 inputs.
//
// A panel has, for each group, 16 times 32 bytes: of four inputs, those of outputs 0..7 in the low halves of the bytes
// and those of outputs 8..15 in the high ones; then 16 scales and 16 leasts as half floats. So a weight takes 4.5 bits.
// Products of a value below 16 and a signed byte leave room to add eight of them in 16 bits.
#include "matrix.h"

namespace {

constexpr int ROWS = 4;
constexpr int64_t QUADS = GROUP / 4;
constexpr int64_t GROUP_BYTES = QUADS * 32 + 4 * COLUMNS;

template <int R>
void group(const uint8_t* a, int64_t stride, const uint8_t* b, const float* sums, int64_t sums_stride, f32x8 (&total)[R][2]) {
    i32x8 exact[R][2] = {};
    const u8x32 low = (u8x32)splat4("\x0f\x0f\x0f\x0f");
    for (int half = 0; half < 2; half++) {
        i16x16 part[R][2] = {};
        for (int64_t k = half * QUADS / 2; k < (half + 1) * QUADS / 2; k++) {
            const u8x32 both = load<u8x32>(b + k * 32);
            const i32x8 left = (i32x8)(both & low);
            const i32x8 right = (i32x8)((u8x32)((i16x16)both >> 4) & low);
            UNROLL for (int r = 0; r < R; r++) {
                const i32x8 x = splat4(a + r * stride + k * 4);
                part[r][0] = dot2(part[r][0], left, x);
                part[r][1] = dot2(part[r][1], right, x);
            }
        }
        UNROLL for (int r = 0; r < R; r++)
            for (int side = 0; side < 2; side++) exact[r][side] += add_pairs(part[r][side]);
    }
    const uint16_t* scales = (const uint16_t*)(b + QUADS * 32);
    for (int side = 0; side < 2; side++) {
        const f32x8 scale = from_half(scales + side * LANES), least = from_half(scales + COLUMNS + side * LANES);
        UNROLL for (int r = 0; r < R; r++)
            total[r][side] += to_float(exact[r][side]) * scale + least * sums[r * sums_stride];
    }
}

template <int R>
void tile(const Matrix& m, const Rows& rows, int64_t row, int64_t panel, const Sink& to) {
    f32x8 total[R][2] = {};
    const int64_t groups = m.padded / GROUP;
    const uint8_t* b = (const uint8_t*)m.panels + panel * groups * GROUP_BYTES;
    for (int64_t g = 0; g < groups; g++)
        group<R>(rows.q + row * m.padded + g * GROUP, m.padded, b + g * GROUP_BYTES, rows.sums + row * groups + g, groups, total);
    for (int half = 0; half < 2; half++)
        for (int r = 0; r < R; r++)
            put(m, to, row + r, panel * COLUMNS + half * LANES, total[r][half] * rows.scale[row + r]);
}

}  // namespace

void multiply_int4(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, const Sink& to) {
    for (; first + ROWS <= last; first += ROWS) tile<ROWS>(m, rows, first, panel, to);
    switch (last - first) {
        case 3: tile<3>(m, rows, first, panel, to); break;
        case 2: tile<2>(m, rows, first, panel, to); break;
        case 1: tile<1>(m, rows, first, panel, to); break;
    }
}
