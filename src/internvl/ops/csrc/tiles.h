// How the innermost loops divide a product: tiles of some rows times one panel, or two where vectors are as wide as a panel.
//
// What is multiplied with lies in panels of 16 columns; a tile's sums and what they need fill the registers.
#pragma once

#include "simd.h"

constexpr int COLUMNS = 16;                  // of a panel
constexpr int PER_PANEL = COLUMNS / VECTOR;  // vectors
constexpr int STRIP = 2 / PER_PANEL;         // panels that a tile takes at most: two vectors a row
constexpr int TALL = VECTOR / LANES;         // where vectors are wide there are twice as many: tiles have twice the rows

// Vector `v` of a tile's columns; panels are `apart`.
template <class T>
static inline const T* in_panels(const T* panels, int64_t apart, int v, int size = 1) {
    return panels + v / PER_PANEL * apart + v % PER_PANEL * VECTOR * size;
}

// Calls `each` with `count`, 1..MOST, as a constant; not at all with 0.
template <int MOST, class Each>
static inline void as_constant(int64_t count, const Each& each) {
    if constexpr (MOST > 0) {
        if (count == MOST) each(std::integral_constant<int, MOST>{});
        else as_constant<MOST - 1>(count, each);
    }
}

// Calls `each(R, row)` for ROWS rows at a time, then for those that are left.
template <int ROWS, class Each>
static inline void in_tiles(int64_t first, int64_t last, const Each& each) {
    for (; first + ROWS <= last; first += ROWS) each(std::integral_constant<int, ROWS>{}, first);
    as_constant<ROWS - 1>(last - first, [&](auto rest) { each(rest, first); });
}

// Chains that a tile's sums are divided among: what one row alone adds would wait four cycles for what it added before.
template <int ROWS>
constexpr int CHAINS = ROWS == 1 ? 4 : 1;

// Calls `add(chain, k)` for 0..count - 1, to the chains in turn.
template <int CHAINS, class Add>
static inline void in_chains(int64_t count, const Add& add) {
    in_tiles<CHAINS>(0, count, [&](auto some, int64_t k) { unrolled<some>([&](auto chain) { add(chain, k + chain); }); });
}

// Adds the sums of all chains to those of the first.
template <int CHAINS, int R, int V, class T>
static inline void join(T (&sums)[CHAINS][R][V]) {
    unrolled<CHAINS - 1>([&](auto chain) {
        unrolled<R>([&](auto r) { unrolled<V>([&](auto v) { sums[0][r][v] += sums[chain + 1][r][v]; }); });
    });
}

// Calls `each(P, panel)` for as many panels at a time as a tile takes; for one row alone, which waits for memory, one after
// the other: two streams came slower.
template <class Each>
static inline void in_strips(int64_t rows, int64_t panel, int64_t end, const Each& each) {
    if (rows == 1) in_tiles<1>(panel, end, each);
    else in_tiles<STRIP>(panel, end, each);
}
