// Attention of a tile in integers of 16 bits, for towers that round their rows to eight anyway.
//
// A vector has twice as many of them as floats, and an instruction multiplies them and adds neighbours. Blocks of queries and panels of
// 16 columns are as in attention.cpp, but a panel holds neighbouring pairs. What is multiplied is rounded to so many steps
// that sums fit 32 bits: queries and keys to sqrt(2^31 / D), 5791 for heads of 64, each with a scale of its own, after keys
// gave the size of their channels to the queries, since few channels often outweigh the rest; columns of values to 4095; probabilities, whose sum is known by then, to 32767, or to fewer so that they make half a million.
#include <vector>

#include "attention.h"
#include "tiles.h"

namespace {

constexpr int ROWS = 6 * TALL, BLOCK = 24;
constexpr int64_t PAIRS = 256;  // of keys in a pass over the values: their panel stays in the first cache
constexpr float VALUE = 4095.0f, PROBABILITY = 32767.0f, PROBABILITIES = 5e5f;  // steps of the largest, and of all together
constexpr float TINY = 1e-30f;  // no size that is divided by is smaller
constexpr int64_t PATCHES = 40000;
static_assert((double(PROBABILITIES) + PATCHES / 2) * double(VALUE) < 2147483647.0, "each may be half a step too large");

// The largest magnitude of x times `factors`; NaN if there is a value that is not finite.
float size_of(const float* x, const float* factors, int64_t width) {
    f32v largest = {}, taint = {};
    for (int64_t i = 0; i < width; i += VECTOR) {
        const f32v v = load<f32v>(x + i) * load<f32v>(factors + i);
        largest = larger(larger(v, -v), largest);
        taint += v * 0.0f;
    }
    return largest_of(largest) + sum_of(taint);
}

// round(v * inverse), within -most..most; -most if that is NaN.
i32v to_steps(f32v v, f32v inverse, float most) {
    return to_int(smaller(larger(rounded(v * inverse), splat<f32v>(-most)), splat<f32v>(most)));
}

// Rounds a row times `factors`; returns what a step stands for, NaN if a value is not finite.
float round_row(const float* x, const float* factors, int64_t width, float most, int16_t* to) {
    const float size = size_of(x, factors, width), inverse = most / std::max(size, TINY);
    for (int64_t i = 0; i < width; i += VECTOR)
        store_shorts(to + i, to_steps(load<f32v>(x + i), load<f32v>(factors + i) * inverse, most));
    return size / most;
}

// Sums of R rows times P panels of `pairs` x 16, handed to `finish` with their row and column.
template <int R, int P, class Finish>
void tile(const int16_t* a, int64_t stride, const int16_t* panel, int64_t apart, int64_t pairs, const Finish& finish) {
    constexpr int V = P * PER_PANEL;
    i32v sums[R][V] = {};
    for (int64_t i = 0; i < pairs; i++, panel += 2 * COLUMNS) {
        i32v columns[V];
        unrolled<V>([&](auto v) { columns[v] = load<i32v>(in_panels(panel, apart, v, 2)); });
        unrolled<R>([&](auto r) {
            const i32v x = splat4<i32v>(a + r * stride + 2 * i);
            unrolled<V>([&](auto v) { sums[r][v] = dot_pairs(sums[r][v], x, columns[v]); });
        });
    }
    unrolled<R>([&](auto r) { unrolled<V>([&](auto v) { finish(r, v * VECTOR, sums[r][v]); }); });
}

// Rows of `a` times `count` panels, which are `apart`.
template <class Finish>
void tiles(int64_t rows, const int16_t* a, int64_t stride, const int16_t* panels, int64_t apart, int64_t count, int64_t pairs,
           const Finish& finish) {
    in_strips(rows, 0, count, [&](auto P, int64_t panel) {
        in_tiles<ROWS>(0, rows, [&](auto R, int64_t row) {
            const auto there = [&](int r, int column, i32v sums) { finish(row + r, panel * COLUMNS + column, sums); };
            tile<R, P>(a + row * stride, stride, panels + panel * apart, apart, pairs, there);
        });
    });
}

// Keys, values and queries of one head: `stride` from one patch to the next.
struct Head {
    const float *q, *k, *v;
    int64_t stride, patches, width, padded;
    float most;  // steps of queries and keys
};

// A head's keys in panels of 16 keys, for each pair of the width; its values in panels of 16 columns, for each pair of keys.
struct Panels {
    std::vector<int16_t> keys, values;
    std::vector<float> key_steps, value_steps, channels, inverses;  // sizes of the keys' channels, and one over them
    std::vector<int16_t> row;                                       // of a key, on its way

    void fill(const Head& head) {
        fill_keys(head);
        fill_values(head);
    }

    void fill_keys(const Head& head) {
        row.resize(head.width);
        keys.assign(head.padded * head.width, 0);
        key_steps.assign(head.padded, 0.0f);
        sizes_of(head.k, head, channels);
        inverses.resize(head.width);
        for (int64_t d = 0; d < head.width; d += VECTOR) store(&inverses[d], 1.0f / load<f32v>(&channels[d]));
        for (int64_t s = 0; s < head.patches; s++) {
            key_steps[s] = round_row(head.k + s * head.stride, inverses.data(), head.width, head.most, row.data());
            int16_t* column = keys.data() + s / COLUMNS * COLUMNS * head.width + s % COLUMNS * 2;
            for (int64_t d = 0; d < head.width; d += 2) std::memcpy(column + d * COLUMNS, row.data() + d, 4);
        }
    }

    void fill_values(const Head& head) {
        values.resize(head.padded * head.width);
        sizes_of(head.v, head, value_steps);
        for (float& step : value_steps) step /= VALUE;
        for (int64_t s = 0; s < head.padded; s += 2)
            for (int64_t d = 0; d < head.width; d += VECTOR) {
                const i32v one = short_of(head, s, d), next = short_of(head, s + 1, d);
                int16_t* column = values.data() + d / COLUMNS * COLUMNS * head.padded + d % COLUMNS * 2;
                store(column + s * COLUMNS, (one & 0xffff) | (next << 16));
            }
    }

    // The largest magnitude of each channel, at least TINY; NaN where a value is not finite.
    static void sizes_of(const float* x, const Head& head, std::vector<float>& sizes) {
        sizes.assign(head.width, TINY);
        for (int64_t s = 0; s < head.patches; s++, x += head.stride) {
            fetch(x + AHEAD * head.stride, head.width);
            for (int64_t d = 0; d < head.width; d += VECTOR) {
                const f32v v = load<f32v>(x + d), size = load<f32v>(&sizes[d]);
                store(&sizes[d], larger(larger(v, -v), size) + v * 0.0f);
            }
        }
    }

    i32v short_of(const Head& head, int64_t s, int64_t d) const {
        if (s >= head.patches) return i32v{};
        return to_steps(load<f32v>(head.v + s * head.stride + d), 1.0f / load<f32v>(&value_steps[d]), VALUE);
    }
};

struct Scratch {
    Panels panels;
    std::vector<float> scores;
    std::vector<int16_t> queries, probabilities;
    std::vector<int32_t> sums;
};

thread_local Scratch scratch;

constexpr float POWER[] = {0.05517178f, 0.24261143f, 0.69326099f, 0.99992806f};  // off by 8e-5 of itself

// Scores to 2^(score - largest) for the first `count`, then to integers; returns one over their sum, NaN if a score is.
float round_probabilities(float* scores, int64_t count, int64_t padded, int16_t* to) {
    f32v most = splat<f32v>(-INFINITY), sums = {};
    std::fill(scores + count, scores + padded, -INFINITY);
    for (int64_t i = 0; i < padded; i += VECTOR) most = larger(load<f32v>(scores + i), most);
    const float largest = largest_of(most);
    for (int64_t i = 0; i < padded; i += VECTOR) {
        const f32v value = power(load<f32v>(scores + i) - largest, POWER);
        store(scores + i, value);
        sums += value;
    }
    const float sum = sum_of(sums);
    const float scale = std::min(PROBABILITIES / sum, PROBABILITY);  // in this order NaN stays NaN, and all become 0
    i32v total = {};
    for (int64_t i = 0; i < padded; i += VECTOR) {
        const i32v value = to_int(larger(load<f32v>(scores + i) * scale + 0.5f, splat<f32v>(0.0f)));
        store_shorts(to + i, value);
        total += value;
    }
    return 1.0f / sum_of(to_float(total)) + sum * 0.0f;
}

// Rows first..first + rows of the queries; `steps` turns sums of products into scores, as powers of two.
void round_queries(const Head& head, int64_t first, int64_t rows, float* steps) {
    scratch.queries.resize(BLOCK * head.width);
    for (int64_t row = 0; row < rows; row++) {
        const float* query = head.q + (first + row) * head.stride;
        fetch(query + AHEAD * head.stride, head.width);
        const float* channels = scratch.panels.channels.data();
        steps[row] = round_row(query, channels, head.width, head.most, scratch.queries.data() + row * head.width) /
                     std::sqrt(float(head.width)) * LOG2E;
    }
}

void score(const Head& head, int64_t rows, const float* steps) {
    const int64_t width = head.width, padded = head.padded;
    const Panels& panels = scratch.panels;
    scratch.scores.resize(BLOCK * padded);
    const float* key_steps = panels.key_steps.data();
    float* scores = scratch.scores.data();
    const auto finish = [=](int64_t row, int64_t key, i32v sums) {
        store(scores + row * padded + key, to_float(sums) * (load<f32v>(key_steps + key) * steps[row]));
    };
    tiles(rows, scratch.queries.data(), width, panels.keys.data(), COLUMNS * width, padded / COLUMNS, width / 2, finish);
}

// Sums of the values, weighted with probabilities.
void gather(const Head& head, int64_t rows) {
    const int64_t width = head.width, padded = head.padded;
    scratch.sums.assign(BLOCK * width, 0);
    int32_t* all = scratch.sums.data();
    const auto finish = [=](int64_t row, int64_t column, i32v sums) {
        int32_t* place = all + row * width + column;
        store(place, load<i32v>(place) + sums);
    };
    for (int64_t pair = 0; pair < padded / 2; pair += PAIRS)
        tiles(rows, scratch.probabilities.data() + 2 * pair, padded, scratch.panels.values.data() + pair * 2 * COLUMNS,
              COLUMNS * padded, width / COLUMNS, std::min(PAIRS, padded / 2 - pair), finish);
}

// Rows first..first + rows of a head.
void attend(const Head& head, int64_t first, int64_t rows, float* out, int64_t out_stride) {
    float steps[BLOCK], inverse[BLOCK];
    round_queries(head, first, rows, steps);
    score(head, rows, steps);
    scratch.probabilities.resize(BLOCK * head.padded);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t place = row * head.padded;
        inverse[row] = round_probabilities(&scratch.scores[place], head.patches, head.padded, &scratch.probabilities[place]);
    }
    gather(head, rows);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t d = 0; d < head.width; d += VECTOR) {
            const f32v step = load<f32v>(&scratch.panels.value_steps[d]) * inverse[row];
            store(out + (first + row) * out_stride + d, to_float(load<i32v>(&scratch.sums[row * head.width + d])) * step);
        }
}

}  // namespace

void attend_tile_16(const float* qkv, int64_t patches, int64_t heads, int64_t width, int64_t head, float* out) {
    if (patches > PATCHES) return attend_tile(qkv, patches, heads, width, head, out);
    const float* q = qkv + head * width;
    const int64_t padded = (patches + COLUMNS - 1) / COLUMNS * COLUMNS;
    const float most = std::min(32767.0f, std::floor(std::sqrt(0x1p31f / float(width))) - 1.0f);  // sums stay below 2^31
    const Head one = {q, q + heads * width, q + 2 * heads * width, 3 * heads * width, patches, width, padded, most};
    scratch.panels.fill(one);
    for (int64_t first = 0; first < patches; first += BLOCK)
        attend(one, first, std::min<int64_t>(BLOCK, patches - first), out + head * width, heads * width);
}
