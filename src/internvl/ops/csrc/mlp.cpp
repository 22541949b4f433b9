// A gated MLP of many rows, down(silu(gate) * up): what is as wide as the MLP stays in the caches.
#include "gate.h"
#include "memory.h"
#include "shares.h"

namespace {

constexpr int64_t PANELS = 8;  // of gates, and of what they let through, at a time
constexpr int64_t WIDE = PANELS * COLUMNS;

// Gated values of rows that `gate_up` can multiply, each `down.inputs` wide.
void gated(const Matrix& gate_up, const Rows& rows, int64_t count, int64_t width, float* halves, float* to) {
    for (int64_t column = 0; column < width; column += WIDE) {
        const int64_t some = std::min(WIDE, width - column);
        for (int64_t half = 0; half < 2; half++) {
            const int64_t first = half * width + column;
            const Sink sink = {halves + half * WIDE - first, 2 * WIDE, false};
            multiply_rows(gate_up, rows, 0, count, first / COLUMNS, (first + some) / COLUMNS, sink);
        }
        for (int64_t row = 0; row < count; row++) {
            const float* gate = halves + row * 2 * WIDE;
            gate_row(gate, gate + WIDE, some, to + row * width + column);
        }
    }
}

void share(const Matrix& gate_up, const Matrix& down, const float* x, int64_t count, float* out) {
    thread_local Scratch memory;
    const int64_t width = down.inputs, bytes = std::max(scratch_bytes(gate_up, SHARE), scratch_bytes(down, SHARE));
    char* prepared = memory.at_least(bytes + SHARE * (width + 2 * WIDE) * 4);
    float *hidden = reinterpret_cast<float*>(prepared + bytes), *halves = hidden + SHARE * width;
    gated(gate_up, prepared_rows(gate_up, x, count, prepared, [](int64_t) {}), count, width, halves, hidden);
    const Rows rows = prepared_rows(down, hidden, count, prepared, [](int64_t) {});
    multiply_rows(down, rows, 0, count, 0, down.num_panels(), {out, down.outputs, false});
}

}  // namespace

// x (T, C) to out (T, C). The width between is a multiple of 16; no matrix is PLAIN.
extern "C" void gated_mlp(const Matrix* gate_up, const Matrix* down, const float* x, int64_t count, float* out) {
#pragma omp parallel
    each_share(count, [&](int64_t row, int64_t some) {
        share(*gate_up, *down, x + row * gate_up->inputs, some, out + row * down->outputs);
    });
}
