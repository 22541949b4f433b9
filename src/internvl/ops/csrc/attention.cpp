// Exact attention in float32, whole rows of scores at a time.
//
// Keys of a head are laid in panels of 16 (for each value of the width, 16 keys), values in panels of 16 columns, so that
// both products are two loads, six broadcasts and twelve fused multiply-adds for a tile of 6 rows x 16 columns, on AVX-512 twice
// the broadcasts and sums for 12 rows x 32 columns: these fill the registers. Scores are kept times log2(e):
// what they become is a power of two. A block of 48 queries shares a pass over keys and values; its scores stay in the second
// cache. Rows never see keys beyond their limit, so nothing is masked by adding.
#include "attention.h"

#include <vector>

#include "tiles.h"

namespace {

constexpr int ROWS = 6 * TALL, BLOCK = 48;
constexpr int64_t KEYS = 128;  // keys of a pass over the values: their panel stays in the first cache

int64_t rounded_up(int64_t size) { return (size + COLUMNS - 1) / COLUMNS * COLUMNS; }

// A tile of `a` (R rows, `a_stride` apart, `length` values) times P panels of `length` x 16, written to `to` or added.
template <int R, int P, bool ADD>
void tile(const float* a, int64_t a_stride, const float* panel, int64_t apart, int64_t length, float* to, int64_t to_stride) {
    constexpr int V = P * PER_PANEL;
    f32v sums[R][V] = {};
    for (int64_t i = 0; i < length; i++, panel += COLUMNS) {
        f32v columns[V];
        unrolled<V>([&](auto v) { columns[v] = load<f32v>(in_panels(panel, apart, v)); });
        unrolled<R>([&](auto r) {
            const f32v x = splat<f32v>(a[r * a_stride + i]);
            unrolled<V>([&](auto v) { sums[r][v] += x * columns[v]; });
        });
    }
    unrolled<R>([&](auto r) {
        unrolled<V>([&](auto v) {
            float* place = to + r * to_stride + v * VECTOR;
            store(place, ADD ? load<f32v>(place) + sums[r][v] : sums[r][v]);
        });
    });
}

// Rows of `a` times `count` panels, which are `apart`.
template <bool ADD>
void tiles(int64_t rows, const float* a, int64_t a_stride, const float* panels, int64_t apart, int64_t count, int64_t length,
           float* to, int64_t to_stride) {
    in_strips(rows, 0, count, [&](auto P, int64_t panel) {
        in_tiles<ROWS>(0, rows, [&](auto R, int64_t row) {
            tile<R, P, ADD>(a + row * a_stride, a_stride, panels + panel * apart, apart, length,
                            to + row * to_stride + panel * COLUMNS, to_stride);
        });
    });
}

// Off by less than a unit in the last place.
constexpr float POWER[] = {1.54697322e-4f, 1.34004327e-3f, 9.61802527e-3f, 5.55032715e-2f, 2.40226507e-1f, 6.93147182e-1f, 1.0f};

// Scores to 2^(score - largest), zeros from `limit` to `padded`; returns one over their sum.
float soften(float* scores, int64_t limit, int64_t padded) {
    f32v most = splat<f32v>(-INFINITY);
    int64_t i = 0;
    for (; i + VECTOR <= limit; i += VECTOR) most = larger(load<f32v>(scores + i), most);
    float largest = largest_of(most);
    for (int64_t k = i; k < limit; k++) largest = std::max(largest, scores[k]);
    f32v total = {};
    for (i = 0; i + VECTOR <= limit; i += VECTOR) {
        const f32v value = power(load<f32v>(scores + i) - largest, POWER);
        store(scores + i, value);
        total += value;
    }
    float sum = sum_of(total);
    if (i < limit) {
        const f32v value = power(load_some<f32v>(scores + i, limit - i) - largest, POWER);
        for (int64_t k = i; k < limit; k++) sum += value[k - i];
        store_some(scores + i, value, limit - i);
    }
    std::fill(scores + limit, scores + padded, 0.0f);
    return 1.0f / sum;
}

// One head of keys and values in panels.
struct Panels {
    std::vector<float> keys, values;
    int64_t length, padded, width;

    void fill(const float* k, const float* v, int64_t stride, int64_t count, int64_t head_width) {
        length = count, padded = rounded_up(count), width = head_width;
        keys.resize(padded * width);
        values.resize(padded * width);
        for (int64_t s = 0; s < padded; s++) {
            float* column = keys.data() + s / COLUMNS * COLUMNS * width + s % COLUMNS;
            const float* key = k + s * stride;
            fetch(key + AHEAD * stride, width);
            fetch(v + (s + AHEAD) * stride, width);
            for (int64_t d = 0; d < width; d++) column[d * COLUMNS] = s < length ? key[d] : 0.0f;
            for (int64_t d = 0; d < width; d += COLUMNS) {
                float* row = values.data() + d * padded + s * COLUMNS;
                if (s < length) std::memcpy(row, v + s * stride + d, COLUMNS * sizeof(float));
                else std::memset(row, 0, COLUMNS * sizeof(float));
            }
        }
    }
};

struct Scratch {
    Panels panels;
    std::vector<float> queries, scores, sums;
};

thread_local Scratch scratch;

// Rows first..last of one head; row i sees the first min(length, seen + i + 1) keys, all of them if `seen` < 0.
void attend(const Panels& panels, const float* q, float* out, int64_t stride, int64_t out_stride, int64_t first,
            int64_t last, int64_t seen) {
    const int64_t rows = last - first, width = panels.width;
    const int64_t reach = seen < 0 ? panels.length : std::min(panels.length, seen + last);
    const int64_t padded = rounded_up(reach);
    scratch.queries.resize(BLOCK * width);
    scratch.scores.resize(BLOCK * panels.padded);
    scratch.sums.resize(BLOCK * width);
    float *queries = scratch.queries.data(), *scores = scratch.scores.data(), *sums = scratch.sums.data();
    const float scale = LOG2E / std::sqrt(float(width));
    for (int64_t row = 0; row < rows; row++) {
        fetch(q + (first + row + AHEAD) * stride, width);
        for (int64_t d = 0; d < width; d++) queries[row * width + d] = q[(first + row) * stride + d] * scale;
    }
    tiles<false>(rows, queries, width, panels.keys.data(), COLUMNS * width, padded / COLUMNS, width, scores, panels.padded);
    std::fill(sums, sums + rows * width, 0.0f);
    float inverse[BLOCK];
    for (int64_t row = 0; row < rows; row++) {
        const int64_t limit = seen < 0 ? panels.length : std::min(panels.length, seen + first + row + 1);
        inverse[row] = soften(scores + row * panels.padded, limit, padded);
    }
    for (int64_t key = 0; key < padded; key += KEYS)
        tiles<true>(rows, scores + key, panels.padded, panels.values.data() + key * COLUMNS, COLUMNS * panels.padded,
                    width / COLUMNS, std::min(KEYS, padded - key), sums, width);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t d = 0; d < width; d++) out[(first + row) * out_stride + d] = sums[row * width + d] * inverse[row];
}

}  // namespace

void attend_tile(const float* qkv, int64_t patches, int64_t heads, int64_t width, int64_t head, float* out) {
    const int64_t stride = 3 * heads * width, out_stride = heads * width;
    const float* q = qkv + head * width;
    scratch.panels.fill(q + heads * width, q + 2 * heads * width, stride, patches, width);
    for (int64_t first = 0; first < patches; first += BLOCK)
        attend(scratch.panels, q, out + head * width, stride, out_stride, first, std::min(first + BLOCK, patches), -1);
}

// Every tile's patches among themselves: qkv (N, P, 3 H D), each of the three by heads; out (N, P, H D).
extern "C" void tile_attention(const float* qkv, int64_t tiles_, int64_t patches, int64_t heads, int64_t width,
                               int64_t in_16_bits, float* out) {
    const auto attend_one = in_16_bits ? attend_tile_16 : attend_tile;
    const int64_t size = patches * heads * width;
#pragma omp parallel for schedule(dynamic)
    for (int64_t job = 0; job < tiles_ * heads; job++)
        attend_one(qkv + job / heads * 3 * size, patches, heads, width, job % heads, out + job / heads * size);
}

// Causal attention of T new tokens after `length` - T old ones: q (T, heads, D), keys and values (kv_heads, length, D) with
// strides from head to head and from position to position; out (T, heads, D).
extern "C" void causal_attention(const float* q, const float* keys, const float* values, int64_t tokens, int64_t length,
                                 int64_t head_stride, int64_t position_stride, int64_t heads, int64_t kv_heads,
                                 int64_t width, float* out) {
    const int64_t group = heads / kv_heads, stride = heads * width;
    const int64_t blocks = (tokens + BLOCK - 1) / BLOCK;
    for (int64_t head = 0; head < kv_heads; head++) {
        Panels& panels = scratch.panels;
        panels.fill(keys + head * head_stride, values + head * head_stride, position_stride, length, width);
#pragma omp parallel for schedule(dynamic)
        for (int64_t job = 0; job < group * blocks; job++) {
            const int64_t offset = (head * group + job % group) * width;
            const int64_t first = (blocks - 1 - job / group) * BLOCK;  // the longest rows first
            attend(panels, q + offset, out + offset, stride, stride, first, std::min(first + BLOCK, tokens),
                   length - tokens);
        }
    }
}
