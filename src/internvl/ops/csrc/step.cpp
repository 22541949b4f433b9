// One new token of each of several sequences through a whole decoder, in one parallel region.
//
// At one token a layer is a few tens of microseconds of reading weights, so the time between operators would show: here
// a layer is nine loops with a barrier after each. Keys and values lie in blocks of `block_size` positions, and a table
// says which blocks a sequence has: a plain cache is one block a sequence.
#include <limits>

#include "gate.h"
#include "matrix.h"
#include "memory.h"
#include "rows.h"

namespace {

// Keys or values: floats without scales, else signed bytes with a scale for each head and position.
struct Cells {
    void* values;
    float* scales;
};

struct Layer {
    const float *norm1, *norm2, *q_norm, *k_norm;  // the last two may be null
    Matrix qkv, out, gate_up, down;
    Cells keys, values;
};

struct Decoder {
    int64_t num_layers, width, heads, kv_heads, head_dim, mlp_width;
    double eps;
    const Layer* layers;
    const float* norm;
};

// Sequences: how many positions each has before the new one, and its blocks. Position p of a sequence is found `p / size
// of a block` strides of a block, one of a head and `p % size` widths of a head from the beginning.
struct Batch {
    int64_t size;
    const int64_t* lengths;
    const int64_t* blocks;
    int64_t max_blocks, block_size, block_stride, head_stride;
};

// cos and sin (size, D) of the new positions.
struct Turn {
    const float *cos, *sin;
};

// Normalised if there is a weight, then turned by its position, in place.
void turn(float* x, const float* norm, const float* cos, const float* sin, int64_t width, double eps) {
    if (norm) rms_norm_row(x, norm, width, eps, x);
    turn_head(x, cos, sin, width, x);
}

f32x8 cells8(const float* at) { return load<f32x8>(at); }
f32x8 cells8(const int8_t* at) { return from_bytes(at); }

// What is `width` wide goes to its place; in bytes, the largest becomes 127.
void keep(const Cells& cells, int64_t place, const float* x, int64_t width) {
    if (!cells.scales) {
        std::memcpy((float*)cells.values + place, x, width * sizeof(float));
        return;
    }
    float largest = std::numeric_limits<float>::min();
    for (int64_t i = 0; i < width; i++) largest = std::max(std::fabs(x[i]), largest);
    const float inverse = 127.0f / largest;
    for (int64_t i = 0; i < width; i++) ((int8_t*)cells.values)[place + i] = int8_t(std::nearbyint(x[i] * inverse));
    cells.scales[place / width] = largest / 127.0f;
}

// The scores of one query with all keys become probabilities.
void soften(float* scores, int64_t count) {
    f32x8 largest = splat(scores[0]), sums = {};
    int64_t s = 0;
    for (; s + LANES <= count; s += LANES) largest = larger(largest, load<f32x8>(scores + s));
    float most = largest_of(largest), sum = 0;
    for (; s < count; s++) most = std::max(most, scores[s]);
    for (s = 0; s < count; s += LANES) {
        const int64_t some = std::min<int64_t>(count - s, LANES);
        const f32x8 value = exponential(load_some(scores + s, some) - most);
        store_some(scores + s, value, some);
        if (some == LANES) sums += value;
        else
            for (int64_t lane = 0; lane < some; lane++) sum += value[lane];
    }
    const float inverse = 1.0f / (sum + sum_of(sums));
    for (s = 0; s < count; s++) scores[s] *= inverse;
}

// Positions that lie one after the other: keys or values of a head, with their scales if they are bytes.
template <class Cell>
struct Run {
    const Cell* cells;
    const float* scales;
    int64_t first, count, width;
};

// Scores of G queries with a run's keys; those of a query lie `stride` long.
template <int G, class Cell>
void score(const Run<Cell>& run, const float* queries, float* scores, int64_t stride) {
    for (int64_t s = 0; s < run.count; s++) {
        f32x8 sums[G] = {};
        for (int64_t i = 0; i < run.width; i += LANES) {
            const f32x8 key = cells8(run.cells + s * run.width + i);
            unrolled<G>([&](auto g) { sums[g] += load<f32x8>(queries + g * run.width + i) * key; });
        }
        const float size = run.scales ? run.scales[s] : 1.0f;
        unrolled<G>([&](auto g) { scores[g * stride + run.first + s] = sum_of(sums[g]) * size; });
    }
}

// What G queries see of `V` vectors of a run's values is added to `to`.
template <int G, int V, class Cell>
void gather_part(const Run<Cell>& run, const float* shares, int64_t stride, float* to) {
    f32x8 sums[G][V];
    unrolled<G>([&](auto g) { unrolled<V>([&](auto v) { sums[g][v] = load<f32x8>(to + g * run.width + v * LANES); }); });
    for (int64_t s = 0; s < run.count; s++) {
        const float size = run.scales ? run.scales[s] : 1.0f;
        f32x8 values[V];
        unrolled<V>([&](auto v) { values[v] = cells8(run.cells + s * run.width + v * LANES) * size; });
        unrolled<G>([&](auto g) {
            unrolled<V>([&](auto v) { sums[g][v] += values[v] * shares[g * stride + run.first + s]; });
        });
    }
    unrolled<G>([&](auto g) { unrolled<V>([&](auto v) { store(to + g * run.width + v * LANES, sums[g][v]); }); });
}

template <int G, class Cell>
void gather(const Run<Cell>& run, const float* shares, int64_t stride, float* to) {
    for (int64_t i = 0; i < run.width; i += 2 * LANES) {
        Run<Cell> part = run;
        part.cells += i;
        if (i + 2 * LANES <= run.width) gather_part<G, 2>(part, shares, stride, to + i);
        else gather_part<G, 1>(part, shares, stride, to + i);
    }
}

// Where one sequence's keys and values of one head lie.
struct Places {
    const Batch& batch;
    const int64_t* blocks;
    int64_t head, width;

    int64_t of(int64_t position) const {
        const int64_t block = blocks[position / batch.block_size];
        return block * batch.block_stride + head * batch.head_stride + position % batch.block_size * width;
    }

    // Calls `each` with the runs of the first `count` positions.
    template <class Cell, class Each>
    void runs(const Cells& cells, int64_t count, const Each& each) const {
        for (int64_t first = 0; first < count; first += batch.block_size) {
            const int64_t place = of(first), some = std::min(batch.block_size, count - first);
            each(Run<Cell>{(const Cell*)cells.values + place, cells.scales ? cells.scales + place / width : nullptr, first,
                           some, width});
        }
    }
};

// One sequence and one key head: writes the new key and value, then all of the head's queries look, four at a time.
template <class Cell>
void attend(const Decoder& d, const Layer& layer, const Batch& batch, const Turn& angles, int64_t row, int64_t head,
            float* qkv, float* out) {
    thread_local Scratch scratch;
    const int64_t D = d.head_dim, group = d.heads / d.kv_heads, count = batch.lengths[row] + 1;
    const float *cos = angles.cos + row * D, *sin = angles.sin + row * D;
    const Places places = {batch, batch.blocks + row * batch.max_blocks, head, D};
    float* key = qkv + (d.heads + head) * D;
    turn(key, layer.k_norm, cos, sin, D, d.eps);
    keep(layer.keys, places.of(count - 1), key, D);
    keep(layer.values, places.of(count - 1), qkv + (d.heads + d.kv_heads + head) * D, D);

    float *scores = scratch.floats(group * count), *queries = qkv + head * group * D, *to = out + head * group * D;
    const float scale = 1.0f / std::sqrt(float(D));
    for (int64_t g = 0; g < group; g++) {
        turn(queries + g * D, layer.q_norm, cos, sin, D, d.eps);
        for (int64_t i = 0; i < D; i++) queries[g * D + i] *= scale;
    }
    places.runs<Cell>(layer.keys, count, [&](const Run<Cell>& run) {
        in_tiles<4>(0, group, [&](auto G, int64_t g) { score<G>(run, queries + g * D, scores + g * count, count); });
    });
    for (int64_t g = 0; g < group; g++) soften(scores + g * count, count);
    std::memset(to, 0, group * D * sizeof(float));
    places.runs<Cell>(layer.values, count, [&](const Run<Cell>& run) {
        in_tiles<4>(0, group, [&](auto G, int64_t g) { gather<G>(run, scores + g * count, count, to + g * D); });
    });
}

struct Buffers {
    float *normed, *qkv, *seen, *gate_up, *gated;
    char* prepared;
};

int64_t aligned(int64_t count) { return (count + 15) / 16 * 16; }

Buffers buffers_for(const Decoder& d, int64_t size, Scratch& memory) {
    int64_t prepared = 0;
    for (int64_t l = 0; l < d.num_layers; l++)
        for (const Matrix* m : {&d.layers[l].qkv, &d.layers[l].out, &d.layers[l].gate_up, &d.layers[l].down})
            prepared = std::max(prepared, scratch_bytes(*m, size));
    const int64_t normed = aligned(size * d.width), qkv = aligned(size * (d.heads + 2 * d.kv_heads) * d.head_dim),
                  seen = aligned(size * d.heads * d.head_dim), mlp = aligned(size * d.mlp_width);
    float* at = memory.floats(normed + qkv + seen + 3 * mlp + prepared / 4 + 16);
    Buffers b;
    b.normed = at, at += normed;
    b.qkv = at, at += qkv;
    b.seen = at, at += seen;
    b.gate_up = at, at += 2 * mlp;
    b.gated = at, at += mlp;
    b.prepared = reinterpret_cast<char*>(at);
    return b;
}

// Within a parallel region: rows of `x` through a matrix, all threads together.
void product(const Matrix& m, const float* x, int64_t size, char* prepared, const Sink& to) {
    const Rows rows = rows_in(m, x, size, prepared);
    if (is_integer(m)) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < size; row++) prepare_row(m, rows, row);
    }
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < m.num_panels(); panel += STRIP)
        multiply(m, rows, 0, size, panel, std::min(panel + STRIP, m.num_panels()), to);
}

void normalise(const float* x, const float* weight, const Decoder& d, int64_t size, float* to) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < size; row++) rms_norm_row(x + row * d.width, weight, d.width, d.eps, to + row * d.width);
}

void layer_step(const Decoder& d, const Layer& layer, const Batch& batch, const Turn& angles, float* x, const Buffers& b) {
    const int64_t size = batch.size, heads = d.heads * d.head_dim;
    normalise(x, layer.norm1, d, size, b.normed);
    product(layer.qkv, b.normed, size, b.prepared, {b.qkv, layer.qkv.outputs, false});
#pragma omp for schedule(static)
    for (int64_t job = 0; job < size * d.kv_heads; job++) {
        const int64_t row = job / d.kv_heads, head = job % d.kv_heads;
        const auto look = layer.keys.scales ? attend<int8_t> : attend<float>;
        look(d, layer, batch, angles, row, head, b.qkv + row * layer.qkv.outputs, b.seen + row * heads);
    }
    product(layer.out, b.seen, size, b.prepared, {x, d.width, true});
    normalise(x, layer.norm2, d, size, b.normed);
    product(layer.gate_up, b.normed, size, b.prepared, {b.gate_up, 2 * d.mlp_width, false});
#pragma omp for schedule(static)
    for (int64_t job = 0; job < size * ((d.mlp_width + 255) / 256); job++) {
        const int64_t row = job % size, first = job / size * 256;
        const float* gate = b.gate_up + row * 2 * d.mlp_width + first;
        gate_row(gate, gate + d.mlp_width, std::min<int64_t>(256, d.mlp_width - first), b.gated + row * d.mlp_width + first);
    }
    product(layer.down, b.gated, size, b.prepared, {x, d.width, true});
}

}  // namespace

// x (size, width): embeddings of the new tokens; becomes the final hidden states, normalised. Head widths are multiples
// of 8.
extern "C" void decoder_step(const Decoder* d, float* x, int64_t size, const float* cos, const float* sin,
                             const int64_t* lengths, const int64_t* blocks, int64_t max_blocks, int64_t block_size,
                             int64_t block_stride, int64_t head_stride) {
    thread_local Scratch memory;
    const Buffers buffers = buffers_for(*d, size, memory);
    const Batch batch = {size, lengths, blocks, max_blocks, block_size, block_stride, head_stride};
#pragma omp parallel
    {
        for (int64_t l = 0; l < d->num_layers; l++) layer_step(*d, d->layers[l], batch, {cos, sin}, x, buffers);
        normalise(x, d->norm, *d, size, x);
    }
}
