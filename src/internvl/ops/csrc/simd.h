// Vectors of eight lanes, written once for every machine that GCC or Clang compile for.
//
// Arithmetic is that of the compilers' vector types; only what they cannot say is written per instruction set.
// Every operation gives the same integers everywhere; floats differ by the rounding of fused multiply-add.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef int8_t i8x32 __attribute__((vector_size(32)));
typedef uint8_t u8x32 __attribute__((vector_size(32)));

constexpr int LANES = 8;

// Before a loop of known length whose values must stay in registers.
#define UNROLL _Pragma("GCC unroll 8")

template <class V, class T>
static inline V load(const T* from) {
    V value;
    std::memcpy(&value, from, sizeof(V));
    return value;
}

template <class V, class T>
static inline void store(T* to, V value) {
    std::memcpy(to, &value, sizeof(V));
}

static inline f32x8 splat(float v) { return f32x8{v, v, v, v, v, v, v, v}; }

// The first `count` values, at most 8; further lanes are 0.
static inline f32x8 load_some(const float* from, int64_t count) {
    if (count >= LANES) return load<f32x8>(from);
    f32x8 value = {};
    std::memcpy(&value, from, count * sizeof(float));
    return value;
}

static inline void store_some(float* to, f32x8 value, int64_t count) {
    if (count >= LANES) return store(to, value);
    std::memcpy(to, &value, count * sizeof(float));
}

// Of two values of which one is NaN, the second.
#if defined(__AVX2__)
static inline f32x8 max8(f32x8 a, f32x8 b) { return (f32x8)_mm256_max_ps((__m256)a, (__m256)b); }
static inline f32x8 min8(f32x8 a, f32x8 b) { return (f32x8)_mm256_min_ps((__m256)a, (__m256)b); }
#else
static inline f32x8 max8(f32x8 a, f32x8 b) { return a > b ? a : b; }
static inline f32x8 min8(f32x8 a, f32x8 b) { return a < b ? a : b; }
#endif

static inline float sum8(f32x8 v) {
    f32x4 halves[2];
    std::memcpy(halves, &v, sizeof(v));
    const f32x4 sums = halves[0] + halves[1];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

static inline float largest8(f32x8 v) {
    float found = v[0];
    for (int lane = 1; lane < LANES; lane++) found = std::max(found, v[lane]);
    return found;
}

static inline float smallest8(f32x8 v) { return -largest8(-v); }

static inline f32x8 to_float(i32x8 v) { return __builtin_convertvector(v, f32x8); }

// To the nearest integer, halves to even, as torch.round; |v| below 2^22.
static inline f32x8 round8(f32x8 v) {
#if defined(__AVX2__)
    return (f32x8)_mm256_round_ps((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    f32x8 result;
    for (int lane = 0; lane < LANES; lane++) result[lane] = std::nearbyint(v[lane]);
    return result;
#endif
}

static inline i32x8 to_int(f32x8 v) { return __builtin_convertvector(v, i32x8); }

// Eight signed bytes.
static inline f32x8 from_bytes(const int8_t* from) {
#if defined(__AVX2__)
    return (f32x8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
    f32x8 result;
    for (int lane = 0; lane < LANES; lane++) result[lane] = from[lane];
    return result;
#endif
}

// Four neighbouring bytes in every lane.
static inline i32x8 splat4(const void* bytes) {
    int32_t four;
    std::memcpy(&four, bytes, 4);
    return i32x8{four, four, four, four, four, four, four, four};
}

// total[lane] += sum of a[4 lane + i] * b[4 lane + i], i < 4: a unsigned, b signed. Neighbouring products must
// sum to less than 2^15 in magnitude: on AVX2 they pass through 16 bits (see `int8.cpp` for why they do).
static inline i32x8 dot4(i32x8 total, i32x8 a, i32x8 b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return (i32x8)_mm256_dpbusd_epi32((__m256i)total, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)a, (__m256i)b);
    return total + (i32x8)_mm256_madd_epi16(pairs, ones);
#else
    const u8x32 left = (u8x32)a;
    const i8x32 right = (i8x32)b;
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 4 * lane; i < 4 * lane + 4; i++) total[lane] += int32_t(left[i]) * right[i];
    return total;
#endif
}

// total[lane] += a[2 lane] * b[2 lane] + a[2 lane + 1] * b[2 lane + 1], all of 16 bits with a sign.
static inline i32x8 dot_pairs(i32x8 total, i32x8 a, i32x8 b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return (i32x8)_mm256_dpwssd_epi32((__m256i)total, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
    return total + (i32x8)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    const i16x16 left = (i16x16)a, right = (i16x16)b;
    for (int lane = 0; lane < LANES; lane++)
        total[lane] += int32_t(left[2 * lane]) * right[2 * lane] + int32_t(left[2 * lane + 1]) * right[2 * lane + 1];
    return total;
#endif
}

// Eight values that fit 16 bits.
static inline void store_shorts(int16_t* to, i32x8 values) {
#if defined(__AVX2__)
    const __m128i low = _mm256_castsi256_si128((__m256i)values), high = _mm256_extracti128_si256((__m256i)values, 1);
    _mm_storeu_si128((__m128i*)to, _mm_packs_epi32(low, high));
#else
    for (int lane = 0; lane < LANES; lane++) to[lane] = int16_t(values[lane]);
#endif
}

// total[pair] += a[2 pair] * b[2 pair] + a[2 pair + 1] * b[2 pair + 1] in 16 bits: the caller keeps the sum small.
static inline i16x16 dot2(i16x16 total, i32x8 a, i32x8 b) {
#if defined(__AVX2__)
    return total + (i16x16)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#else
    const u8x32 left = (u8x32)a;
    const i8x32 right = (i8x32)b;
    for (int pair = 0; pair < 16; pair++)
        total[pair] += int16_t(left[2 * pair] * right[2 * pair] + left[2 * pair + 1] * right[2 * pair + 1]);
    return total;
#endif
}

// Sums of neighbouring 16-bit values.
static inline i32x8 add_pairs(i16x16 v) {
#if defined(__AVX2__)
    return (i32x8)_mm256_madd_epi16((__m256i)v, _mm256_set1_epi16(1));
#else
    i32x8 result;
    for (int lane = 0; lane < LANES; lane++) result[lane] = int32_t(v[2 * lane]) + v[2 * lane + 1];
    return result;
#endif
}

// Eight IEEE half floats.
static inline f32x8 from_half(const uint16_t* from) {
#if defined(__F16C__)
    return (f32x8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    f32x8 result;
    for (int lane = 0; lane < LANES; lane++) {
        const uint32_t half = from[lane], sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
        uint32_t bits;
        if (rest >= 0x7c00u) bits = sign | 0x7f800000u | ((rest & 0x3ffu) << 13);
        else if (rest >= 0x400u) bits = sign | ((rest + 0x1c000u) << 13);
        else {  // subnormal: rest * 2^-24
            const float value = float(rest) * 0x1p-24f;
            std::memcpy(&bits, &value, 4);
            bits |= sign;
        }
        float value;
        std::memcpy(&value, &bits, 4);
        result[lane] = value;
    }
    return result;
#endif
}

// e^x to 2 units in the last place for x in -87.3..88.3, the nearer bound's value beyond. NaN stays NaN: it is the second
// of two compared values, which comparisons that fail return.
static inline f32x8 exp8(f32x8 x) {
    const f32x8 bounded = min8(splat(88.3f), max8(splat(-87.3f), x));
    const f32x8 shifted = bounded * 1.44269504f + 0x1.8p23f;  // the lowest bits are the nearest integer
    const f32x8 n = shifted - 0x1.8p23f;
    const f32x8 r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    f32x8 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (f32x8)(((i32x8)shifted + 127) << 23);
}
