// Rows into the format of a matrix, and the loop over panels.
#include "matrix.h"

#include <omp.h>

#include "memory.h"

namespace {

constexpr int SPREAD = 16;  // values of a row that are brought to eight bits together

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The smallest and the largest of 0 and the values; `taint` is 0, or NaN if there is a value that is not finite.
struct Range {
    f32v lows = {}, highs = {}, taints = {};

    void add(f32v v) {
        lows = smaller(lows, v);
        highs = larger(highs, v);
        taints += v * 0.0f;
    }
    float low() const { return smallest_of(lows); }
    float high() const { return largest_of(highs); }
    float taint() const { return sum_of(taints); }
};

Range range_of(const float* x, int64_t width) {
    Range range;
    int64_t i = 0;
    for (; i + VECTOR <= width; i += VECTOR) range.add(load<f32v>(x + i));
    if (i < width) range.add(load_some<f32v>(x + i, width - i));
    return range;
}

// round(x * inverse) + origin, kept within bounds.
void round_row(const float* x, int64_t width, float inverse, float origin, float least, float most, uint8_t* q) {
    const f32v low = splat<f32v>(least), high = splat<f32v>(most);
    for (int64_t i = 0; i < width; i += VECTOR) {
        const f32v v = rounded(load_some<f32v>(x + i, width - i) * inverse) + origin;
        uint8_t bytes[VECTOR];
        store_bytes(bytes, to_int(smaller(larger(v, low), high)));
        std::memcpy(q + i, bytes, std::min<int64_t>(VECTOR, width - i));
    }
}

// Values that lie a sixteenth of the row apart become a quarter of their sums and differences in all sixteen ways (a Hadamard
// transform): a value that is large alone is shared, and no longer sets the step of all others. Weights are packed so too
// (ops/packed.py), which leaves their products with rows as they are.
Range spread(const float* x, int64_t width, float* to) {
    Range range;
    const int64_t apart = width / SPREAD;
    const auto columns = [&](int64_t i, auto count) {
        f32v v[SPREAD];
        unrolled<SPREAD>([&](auto k) { v[k] = load_some<f32v>(x + k * apart + i, count) * 0.25f; });
        unrolled<4>([&](auto bit) {
            unrolled<SPREAD / 2>([&](auto pair) {
                constexpr int half = 1 << bit, first = pair / half * half * 2 + pair % half;
                const f32v left = v[first], right = v[first + half];
                v[first] = left + right;
                v[first + half] = left - right;
            });
        });
        unrolled<SPREAD>([&](auto k) {
            range.add(v[k]);
            store_some(to + k * apart + i, v[k], count);
        });
    };
    int64_t i = 0;
    for (; i + VECTOR <= apart; i += VECTOR) columns(i, std::integral_constant<int64_t, VECTOR>{});
    if (i < apart) columns(i, apart - i);
    return range;
}

// x, spread where its width allows it, = scale * (q - zero) to half a step, q in 0..255; what lies beyond stands for 0.
void to_unsigned(const float* x, int64_t width, int64_t padded, uint8_t* q, float* scale, int32_t* zero) {
    thread_local Scratch memory;
    Range range;
    if (width % SPREAD == 0) {
        float* shared = memory.floats(width);
        range = spread(x, width, shared);
        x = shared;
    } else {
        range = range_of(x, width);
    }
    const float size = range.high() - range.low();
    const float step = size > 0 ? size / 255.0f : 1.0f, inverse = 1.0f / step;
    const float origin = std::nearbyint(-range.low() * inverse);
    *scale = step + range.taint();
    *zero = std::isfinite(origin) ? int32_t(origin) : 0;
    round_row(x, width, inverse, origin, 0.0f, 255.0f, q);
    std::memset(q + width, uint8_t(*zero), padded - width);
}

// x = scale * q to half a step, q in -127..127; sums of q by groups.
void to_signed(const float* x, int64_t width, int64_t padded, uint8_t* q, float* scale, float* sums) {
    const Range range = range_of(x, width);
    const float size = std::max(range.high(), -range.low());
    const float step = size > 0 ? size / 127.0f : 1.0f;
    *scale = step + range.taint();
    round_row(x, width, 1.0f / step, 0.0f, -127.0f, 127.0f, q);
    std::memset(q + width, 0, padded - width);
    for (int64_t first = 0; first < padded; first += GROUP) {
        int32_t sum = 0;
        for (int64_t i = first; i < first + GROUP; i++) sum += int8_t(q[i]);
        sums[first / GROUP] = float(sum);
    }
}

}  // namespace

void put_some(const Matrix& m, const Sink& to, int64_t row, int64_t column, const f32v& value) {
    float* place = to.values + row * to.stride + column;
    for (int64_t lane = 0; lane < m.outputs - column; lane++) {
        const float sum = value[lane] + (m.bias ? m.bias[column + lane] : 0.0f);
        place[lane] = sum * (to.scale ? to.scale[column + lane] : 1.0f) + (to.add ? place[lane] : 0.0f);
    }
}

int64_t scratch_bytes(const Matrix& m, int64_t count) {
    if (!is_integer(m)) return 0;
    const int64_t last = m.kind == INT8 ? aligned(count * 4) : aligned(count * (m.padded / GROUP) * 4);
    return aligned(count * m.padded) + aligned(count * 4) + last;
}

Rows rows_in(const Matrix& m, const float* x, int64_t count, char* scratch) {
    if (!is_integer(m)) return {x, nullptr, nullptr, nullptr, nullptr, m.inputs, 0, m.inputs};
    char* scale = scratch + aligned(count * m.padded);
    char* rest = scale + aligned(count * 4);
    return {x, (uint8_t*)scratch, (float*)scale, (int32_t*)rest, (float*)rest, m.padded, 0, m.padded};
}

void prepare_row(const Matrix& m, const Rows& rows, int64_t row) {
    const float* x = rows.x + row * m.inputs;
    if (m.kind == INT8) {
        to_unsigned(x, m.inputs, m.padded, rows.q + row * m.padded, rows.scale + row, rows.zero + row);
    } else if (m.kind == INT4) {
        to_signed(x, m.inputs, m.padded, rows.q + row * m.padded, rows.scale + row, rows.sums + row * (m.padded / GROUP));
    }
}

void multiply(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to) {
    if (m.kind == INT8) multiply_int8(m, rows, first, last, panel, end, to);
    else if (m.kind == INT4) multiply_int4(m, rows, first, last, panel, end, to);
    else if (m.kind == PLAIN) multiply_plain(m, rows, first, last, panel, end, to);
    else multiply_float(m, rows, first, last, panel, end, to);
}

namespace {

// Inputs of float rows that are taken at a time where there are many: so a block of rows and its part of a panel stay in
// the caches. The part of the rows is copied: at their own distance, often a power of two, they would push out each other.
constexpr int64_t CHUNK = 512, MANY = 1024, ROOM = 16;

int64_t chunk_of(const Matrix& m) {
    const bool splits = (m.kind == FLOAT32 || m.kind == BFLOAT16) && m.inputs > MANY;
    return splits ? CHUNK : m.padded;
}

// Rows first..last, inputs k..k + chunk.
Rows part_of(const Rows& rows, int64_t first, int64_t last, int64_t k, int64_t chunk) {
    if (k == 0 && chunk >= rows.to) return rows;
    thread_local Scratch scratch;
    const int64_t stride = chunk + ROOM, end = std::min(k + chunk, rows.to);
    float* copy = scratch.floats((last - first) * stride);
    for (int64_t row = first; row < last; row++)
        std::memcpy(copy + (row - first) * stride, rows.x + row * rows.stride + k, (end - k) * sizeof(float));
    Rows part = rows;
    part.x = copy - first * stride;
    part.stride = stride, part.from = k, part.to = end;
    return part;
}

}  // namespace

void multiply_rows(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to) {
    if (last - first == 1) return multiply(m, rows, first, last, panel, end, to);
    const int64_t chunk = chunk_of(m);
    // A block of integer rows stays in the second cache while the panels pass. Float rows come in shares: a strip of panels
    // stays there while they pass.
    const int64_t block = is_integer(m) ? std::max<int64_t>((1 << 18) / chunk / 30, 1) * 30 : SHARE;
    for (int64_t k = 0; k < m.padded; k += chunk) {
        for (int64_t row = first; row < last; row += block) {
            const int64_t stop = std::min(row + block, last);
            const Rows part = part_of(rows, row, stop, k, chunk);
            multiply(m, part, row, stop, panel, end, to);
        }
    }
}

// x (count, inputs) times the weight: out (count, outputs), plus what `out` holds if `add`.
extern "C" void linear(const Matrix* m, const float* x, int64_t count, float* out, int64_t add) {
    thread_local Scratch scratch;
    const Rows rows = rows_in(*m, x, count, scratch.at_least(scratch_bytes(*m, count)));
#pragma omp parallel
    {
        if (is_integer(*m)) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < count; row++) prepare_row(*m, rows, row);
        }
        const int64_t panels = m->num_panels(), thread = omp_get_thread_num(), threads = omp_get_num_threads();
        multiply_rows(*m, rows, 0, count, panels * thread / threads, panels * (thread + 1) / threads, {out, m->outputs, add != 0});
    }
}
