// Attention of one head among the patches of one tile.
#pragma once

#include <cstdint>

// qkv (P, 3 H D), each of the three by heads; out (P, H D). D is a multiple of 16.
void attend_tile(const float* qkv, int64_t patches, int64_t heads, int64_t width, int64_t head, float* out);

// The same with everything rounded to 16 bits (attention16.cpp).
void attend_tile_16(const float* qkv, int64_t patches, int64_t heads, int64_t width, int64_t head, float* out);

// Rows of a tile's head lie pages apart, where no processor foresees them: given the row that is needed AHEAD rows later.
constexpr int64_t AHEAD = 6;
static inline void fetch(const float* row, int64_t width) {
    for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(row + i);
}
