// Many rows, of which a thread takes some through all that concerns rows alone, while they are in its caches.
#pragma once

#include <omp.h>

#include "matrix.h"

constexpr int64_t UNIT = 5 * TALL;  // shares begin at multiples of it: int8 tiles of rows stay whole

// Within a parallel region: this thread's share of `count` rows, some at a time.
template <class Take>
void each_share(int64_t count, const Take& take) {
    const int64_t units = (count + UNIT - 1) / UNIT, thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t end = std::min(units * (thread + 1) / threads * UNIT, count);
    for (int64_t row = units * thread / threads * UNIT; row < end; row += SHARE) take(row, std::min(SHARE, end - row));
}

// Rows as a matrix multiplies them; `make` makes each of them just before it is rounded.
template <class Make>
Rows prepared_rows(const Matrix& m, const float* x, int64_t count, char* scratch, const Make& make) {
    const Rows rows = rows_in(m, x, count, scratch);
    for (int64_t row = 0; row < count; row++) {
        make(row);
        prepare_row(m, rows, row);
    }
    return rows;
}
