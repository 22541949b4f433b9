// A weight in one of several number formats, and the rows it is multiplied with.
//
// Every format lies in panels of 16 outputs, so that one loop over panels serves one row (generation) and many
// (pictures, prompts), and a thread takes some of the panels. What differs is the innermost tile, a file each:
// float.cpp, int8.cpp, int4.cpp. Only PLAIN is a weight as PyTorch has it, (O, I) by rows, for few rows at a time. Letters as in Python: T rows, O outputs, I inputs.
#pragma once

#include "tiles.h"

enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3, PLAIN = 4 };

// As Python lays it out (ops/packed.py). `padded` is the number of inputs in the panels. `scale`, `sum` and `bias` hold
// values for whole panels; `bias` may be null; INT4 keeps its scales within the panels.
struct Matrix {
    int64_t kind, outputs, inputs, padded;
    const void* panels;
    const float* scale;
    const int32_t* sum;
    const float* bias;

    int64_t num_panels() const { return (outputs + COLUMNS - 1) / COLUMNS; }
};

// Rows in the form that a kind multiplies: floats as they are; bytes with a scale and a zero point; signed bytes with a
// scale and their sums by groups. Float rows may be only the inputs from..to, `stride` apart.
struct Rows {
    const float* x;
    uint8_t* q;
    float* scale;
    int32_t* zero;
    float* sums;
    int64_t stride, from, to;
};

static inline bool is_integer(const Matrix& m) { return m.kind == INT8 || m.kind == INT4; }

// Bytes that `count` rows need besides themselves, and `Rows` that use them.
int64_t scratch_bytes(const Matrix& m, int64_t count);
Rows rows_in(const Matrix& m, const float* x, int64_t count, char* scratch);

// Brings row number `row` to the matrix's format.
void prepare_row(const Matrix& m, const Rows& rows, int64_t row);

// Rows that a thread takes at a time. Processors with AVX-512 have second caches of 1 MB or more: a part of a weight stays
// there while more rows pass.
constexpr int64_t SHARE = TALL == 1 ? 120 : 270;

// Where a product goes: `values` (T, stride), set or, with `add`, added to; multiplied before by `scale` (outputs) if there
// is one. PLAIN knows no scale.
struct Sink {
    float* values;
    int64_t stride;
    bool add;
    const float* scale = nullptr;
};

// Rows first..last times the panels up to `end`. `to.values` is that of row 0, column 0.
void multiply(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to);

// `multiply` for many rows, in an order that keeps to the caches.
void multiply_rows(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to);

// `multiply`, each in its own file.
void multiply_float(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to);
void multiply_plain(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to);
void multiply_int8(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to);
void multiply_int4(const Matrix& m, const Rows& rows, int64_t first, int64_t last, int64_t panel, int64_t end, const Sink& to);

constexpr int GROUP = 64;  // inputs that share a scale in INT4

// `put` where fewer outputs are left than lanes.
void put_some(const Matrix& m, const Sink& to, int64_t row, int64_t column, const f32v& value);

// A vector of a tile's results at a column, with bias, into the sink; columns beyond the outputs are left out.
static inline void put(const Matrix& m, const Sink& to, int64_t row, int64_t column, f32v value) {
    if (__builtin_expect(column + VECTOR > m.outputs, false)) return put_some(m, to, row, column, value);
    float* place = to.values + row * to.stride + column;
    if (m.bias) value += load<f32v>(m.bias + column);
    if (to.scale) value *= load<f32v>(to.scale + column);
    store(place, to.add ? load<f32v>(place) + value : value);
}
