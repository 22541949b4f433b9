// One block of a vision tower: norms, attention, MLP and both residuals, for whole tiles.
//
// A thread takes some rows through everything that concerns rows alone, so that nothing as wide as the MLP leaves its
// caches: rows are normalised, rounded and multiplied, and what comes out goes on as it is. Only queries, keys and values
// and what attention makes of them are kept for a whole tile.
#include "attention.h"
#include "memory.h"
#include "shares.h"

namespace {

enum Activation : int64_t { GELU = 0, GELU_TANH = 1, QUICK_GELU = 2 };

// Without `bias` a root-mean-square norm.
struct Norm {
    const float *weight, *bias;
};

struct TowerBlock {
    int64_t width, heads, mlp_width, activation;
    double eps;
    Norm norm1, norm2;
    const float *scale1, *scale2;
    Matrix qkv, out, fc1, fc2;
};

void normalise(const float* x, const Norm& norm, int64_t width, double eps, float* to) {
    f32v sums = {}, squares = {};
    if (norm.bias)
        for (int64_t i = 0; i < width; i += VECTOR) sums += load<f32v>(x + i);
    const float mean = sum_of(sums) / float(width);
    for (int64_t i = 0; i < width; i += VECTOR) {
        const f32v v = load<f32v>(x + i) - mean;
        squares += v * v;
    }
    const float factor = 1.0f / std::sqrt(sum_of(squares) / float(width) + float(eps));
    for (int64_t i = 0; i < width; i += VECTOR) {
        const f32v v = (load<f32v>(x + i) - mean) * factor * load<f32v>(norm.weight + i);
        store(to + i, norm.bias ? v + load<f32v>(norm.bias + i) : v);
    }
}

// x times the share of a normal distribution that lies below x. The share beyond |x| is a polynomial of 1 / (1 + p |x|) times
// e^(-x^2 / 2) (Abramowitz and Stegun, 7.1.26); the result is off by less than 4e-7, which is lost in eight bits.
f32v gelu(f32v x) {
    const f32v size = larger(x, -x);
    const f32v t = 1.0f / (size * (0.3275911f * 0.70710678f) + 1.0f);
    f32v p = t * (0.5f * 1.061405429f) + (0.5f * -1.453152027f);
    p = p * t + (0.5f * 1.421413741f);
    p = p * t + (0.5f * -0.284496736f);
    p = p * t + (0.5f * 0.254829592f);
    const f32v beyond = x * (p * t * exponential(x * x * -0.5f));
    return x < 0.0f ? beyond : x - beyond;
}

f32v activated(f32v x, int64_t activation) {
    if (activation == GELU) return gelu(x);
    const f32v z = activation == QUICK_GELU ? x * -1.702f : x * (x * x * 0.044715f + 1.0f) * -1.59576912f;
    return x / (exponential(z) + 1.0f);
}

void activate(float* row, int64_t width, int64_t activation) {
    for (int64_t i = 0; i < width; i += VECTOR)
        store_some(row + i, activated(load_some<f32v>(row + i, width - i), activation), width - i);
}

// Rows through a matrix.
template <class Make>
void product(const Matrix& m, const float* x, int64_t count, char* prepared, const Sink& to, const Make& make) {
    multiply_rows(m, prepared_rows(m, x, count, prepared, make), 0, count, 0, m.num_panels(), to);
}

// What a thread needs for a share.
struct Room {
    float *normed, *hidden;
    char* prepared;
};

Room room_for(const TowerBlock& b) {
    thread_local Scratch memory;
    int64_t bytes = 0;
    for (const Matrix* m : {&b.qkv, &b.out, &b.fc1, &b.fc2}) bytes = std::max(bytes, scratch_bytes(*m, SHARE));
    char* prepared = memory.at_least(bytes + SHARE * (b.width + b.mlp_width) * 4);
    float* normed = reinterpret_cast<float*>(prepared + bytes);
    return {normed, normed + SHARE * b.width, prepared};
}

void to_heads(const TowerBlock& b, const float* x, int64_t count, float* qkv) {
    const Room room = room_for(b);
    product(b.qkv, room.normed, count, room.prepared, {qkv, b.qkv.outputs, false},
            [&](int64_t row) { normalise(x + row * b.width, b.norm1, b.width, b.eps, room.normed + row * b.width); });
}

// What attention saw, and all of the MLP, onto a copy of x.
void from_heads(const TowerBlock& b, const float* x, const float* seen, int64_t count, float* to) {
    const Room room = room_for(b);
    std::memcpy(to, x, count * b.width * sizeof(float));
    product(b.out, seen, count, room.prepared, {to, b.width, true, b.scale1}, [](int64_t) {});
    product(b.fc1, room.normed, count, room.prepared, {room.hidden, b.mlp_width, false},
            [&](int64_t row) { normalise(to + row * b.width, b.norm2, b.width, b.eps, room.normed + row * b.width); });
    product(b.fc2, room.hidden, count, room.prepared, {to, b.width, true, b.scale2},
            [&](int64_t row) { activate(room.hidden + row * b.mlp_width, b.mlp_width, b.activation); });
}

}  // namespace

// x (N, P, C) to out (N, P, C), which is another place. Widths of heads are multiples of 16, so C is; no matrix is PLAIN.
extern "C" void tower_block(const TowerBlock* b, const float* x, int64_t tiles, int64_t patches, float* out) {
    thread_local Scratch memory;
    const int64_t width = b->width, heads = b->heads;
    const int64_t at_once = std::min((omp_get_max_threads() + heads - 1) / heads, tiles);  // enough heads for all threads
    float* qkv = memory.floats(at_once * patches * width * 4);
    float* seen = qkv + at_once * patches * width * 3;
#pragma omp parallel
    for (int64_t tile = 0; tile < tiles; tile += at_once) {
        const int64_t count = std::min(at_once, tiles - tile), start = tile * patches * width;
        each_share(count * patches, [&](int64_t row, int64_t some) {
            to_heads(*b, x + start + row * width, some, qkv + row * 3 * width);
        });
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < count * heads; job++) {
            const int64_t at = job / heads * patches * width;
            const auto attend = is_integer(b->qkv) ? attend_tile_16 : attend_tile;
            attend(qkv + 3 * at, patches, heads, width / heads, job % heads, seen + at);
        }
        each_share(count * patches, [&](int64_t row, int64_t some) {
            from_heads(*b, x + start + row * width, seen + row * width, some, out + start + row * width);
        });
#pragma omp barrier
    }
}
