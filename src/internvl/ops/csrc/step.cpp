// One new token of each of several sequences through a whole decoder, in one parallel region.
//
// At one token a layer is a few tens of microseconds of reading weights, so the time between operators would show: here
// a layer is nine loops with a barrier after each. Keys and values lie in blocks of `block_size` positions, and a table
// says which blocks a sequence has: a plain cache is one block a sequence.
#include <limits>

#include "matrix.h"
#include "memory.h"

namespace {

// Keys or values: floats without scales, else signed bytes with a scale for each head and position.
struct Cells {
    void* values;
    float* scales;

    float scale(int64_t place, int64_t width) const { return scales ? scales[place / width] : 1.0f; }
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

void rms_norm(const float* x, const float* weight, int64_t width, double eps, float* to) {
    f32x8 sums = {};
    for (int64_t i = 0; i < width; i += LANES) {
        const f32x8 v = load_some(x + i, width - i);
        sums += v * v;
    }
    const float factor = 1.0f / std::sqrt(sum8(sums) / float(width) + float(eps));
    for (int64_t i = 0; i < width; i++) to[i] = x[i] * factor * weight[i];
}

// Normalised if there is a weight, then turned by its position, in place.
void turn(float* x, const float* norm, const float* cos, const float* sin, int64_t width, double eps) {
    if (norm) rms_norm(x, norm, width, eps, x);
    for (int64_t i = 0; i < width / 2; i++) {
        const float left = x[i], right = x[i + width / 2];
        x[i] = left * cos[i] - right * sin[i];
        x[i + width / 2] = right * cos[i + width / 2] + left * sin[i + width / 2];
    }
}

f32x8 cells8(const float* at) { return load<f32x8>(at); }
f32x8 cells8(const int8_t* at) { return from_bytes(at); }

template <class Cell>
float dot(const float* a, const Cell* b, int64_t width) {
    f32x8 sums = {};
    for (int64_t i = 0; i < width; i += LANES) sums += load<f32x8>(a + i) * cells8(b + i);
    return sum8(sums);
}

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

// The scores of one query with all keys become probabilities; returns one over their sum.
float soften(float* scores, int64_t count) {
    float most = scores[0];
    for (int64_t i = 1; i < count; i++) most = std::max(most, scores[i]);
    float sum = 0;
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = std::min<int64_t>(count - i, LANES);
        const f32x8 value = exp8(load_some(scores + i, some) - most);
        store_some(scores + i, value, some);
        for (int64_t lane = 0; lane < some; lane++) sum += value[lane];
    }
    return 1.0f / sum;
}

// One sequence and one key head: writes the new key and value, then all of the head's queries look.
template <class Cell>
void attend(const Decoder& d, const Layer& layer, const Batch& batch, const Turn& angles, int64_t row, int64_t head,
            float* qkv, float* out) {
    thread_local Scratch scratch;
    const int64_t D = d.head_dim, group = d.heads / d.kv_heads, count = batch.lengths[row] + 1;
    const float *cos = angles.cos + row * D, *sin = angles.sin + row * D;
    const int64_t* blocks = batch.blocks + row * batch.max_blocks;
    const auto place = [&](int64_t position) {
        const int64_t block = blocks[position / batch.block_size];
        return block * batch.block_stride + head * batch.head_stride + position % batch.block_size * D;
    };
    float* key = qkv + (d.heads + head) * D;
    turn(key, layer.k_norm, cos, sin, D, d.eps);
    keep(layer.keys, place(count - 1), key, D);
    keep(layer.values, place(count - 1), qkv + (d.heads + d.kv_heads + head) * D, D);

    float* scores = scratch.floats(group * count);
    float* queries = qkv + head * group * D;
    const float scale = 1.0f / std::sqrt(float(D));
    for (int64_t g = 0; g < group; g++) {
        turn(queries + g * D, layer.q_norm, cos, sin, D, d.eps);
        for (int64_t i = 0; i < D; i++) queries[g * D + i] *= scale;
    }
    for (int64_t s = 0; s < count; s++) {
        const Cell* found = (const Cell*)layer.keys.values + place(s);
        const float size = layer.keys.scale(place(s), D);
        for (int64_t g = 0; g < group; g++) scores[g * count + s] = dot(queries + g * D, found, D) * size;
    }
    float* to = out + head * group * D;
    std::memset(to, 0, group * D * sizeof(float));
    for (int64_t g = 0; g < group; g++) {
        const float inverse = soften(scores + g * count, count);
        for (int64_t s = 0; s < count; s++) scores[g * count + s] *= inverse;
    }
    for (int64_t s = 0; s < count; s++) {
        const Cell* value = (const Cell*)layer.values.values + place(s);
        const float size = layer.values.scale(place(s), D);
        for (int64_t g = 0; g < group; g++) {
            const float weight = scores[g * count + s] * size;
            for (int64_t i = 0; i < D; i += LANES)
                store(to + g * D + i, load<f32x8>(to + g * D + i) + cells8(value + i) * weight);
        }
    }
}

// silu(gate) * up of one panel's outputs.
void gate_panel(const float* gate, const float* up, int64_t width, float* to) {
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t some = width - i;
        const f32x8 g = load_some(gate + i, some);
        store_some(to + i, g / (1.0f + exp8(-g)) * load_some(up + i, some), some);
    }
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
    for (int64_t panel = 0; panel < m.num_panels(); panel++) multiply(m, rows, 0, size, panel, to);
}

void normalise(const float* x, const float* weight, const Decoder& d, int64_t size, float* to) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < size; row++) rms_norm(x + row * d.width, weight, d.width, d.eps, to + row * d.width);
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
        gate_panel(gate, gate + d.mlp_width, std::min<int64_t>(256, d.mlp_width - first), b.gated + row * d.mlp_width + first);
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
