// Attention of one head among the patches of one tile.
#pragma once

#include <cstdint>

// qkv (P, 3 H D), each of the three by heads; out (P, H D). D is a multiple of 16.
void attend_tile(const float* qkv, int64_t patches, int64_t heads, int64_t width, int64_t head, float* out);
