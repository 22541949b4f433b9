// Vectors, written once for every machine that GCC or Clang compile for: of eight lanes, and of as many as the
// processor takes (`f32v`, `i32v`: sixteen with AVX-512), for what takes most of the time.
//
// Arithmetic is that of the compilers' vector types; only what they cannot say is written per instruction set.
// Every operation gives the same integers everywhere; floats differ by the rounding of fused multiply-add, and
// sums over lanes by their order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

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

// The kernels for AVX-512 are those for its VNNI (`setup.py`).
#if defined(__AVX512VNNI__)
typedef float f32v __attribute__((vector_size(64)));
typedef int32_t i32v __attribute__((vector_size(64)));
#else
typedef f32x8 f32v;
typedef i32x8 i32v;
#endif

constexpr int VECTOR = sizeof(f32v) / sizeof(float);

// Integers as wide as floats.
template <class F>
using Integers = decltype(F{} < F{});

template <class Each, int... I>
static inline void each_of(std::integer_sequence<int, I...>, const Each& each) {
    (each(std::integral_constant<int, I>{}), ...);
}

// A loop over 0..N - 1 as constants, whose body may index what must stay in registers: with a pragma that asks for
// unrolling, GCC kept half of some tiles in memory.
template <int N, class Each>
static inline void unrolled(const Each& each) {
    each_of(std::make_integer_sequence<int, N>{}, each);
}

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

template <class F = f32x8>
static inline F splat(float v) {
    return v - F{};  // the same value, zeros and NaN too
}

// The first `count` values, at most as many as there are lanes; further lanes are 0.
template <class F = f32x8>
static inline F load_some(const float* from, int64_t count) {
    constexpr int64_t lanes = sizeof(F) / sizeof(float);
    if (count >= lanes) return load<F>(from);
    F value = {};
    std::memcpy(&value, from, count * sizeof(float));
    return value;
}

template <class F>
static inline void store_some(float* to, F value, int64_t count) {
    constexpr int64_t lanes = sizeof(F) / sizeof(float);
    if (count >= lanes) return store(to, value);
    std::memcpy(to, &value, count * sizeof(float));
}

// Of two values of which one is NaN, the second.
#if defined(__AVX2__)
static inline f32x8 larger(f32x8 a, f32x8 b) { return (f32x8)_mm256_max_ps((__m256)a, (__m256)b); }
static inline f32x8 smaller(f32x8 a, f32x8 b) { return (f32x8)_mm256_min_ps((__m256)a, (__m256)b); }
#else
static inline f32x8 larger(f32x8 a, f32x8 b) { return a > b ? a : b; }
static inline f32x8 smaller(f32x8 a, f32x8 b) { return a < b ? a : b; }
#endif

static inline float sum_of(f32x8 v) {
    f32x4 halves[2];
    std::memcpy(halves, &v, sizeof(v));
    const f32x4 sums = halves[0] + halves[1];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

static inline float largest_of(f32x8 v) {
    float found = v[0];
    for (int lane = 1; lane < LANES; lane++) found = std::max(found, v[lane]);
    return found;
}

static inline float smallest_of(f32x8 v) { return -largest_of(-v); }

static inline f32x8 to_float(i32x8 v) { return __builtin_convertvector(v, f32x8); }

// To the nearest integer, halves to even, as torch.round.
static inline f32x8 rounded(f32x8 v) {
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
template <class I = i32x8>
static inline I splat4(const void* bytes) {
    int32_t four;
    std::memcpy(&four, bytes, 4);
    return four + I{};
}

// total[lane] += sum of a[4 lane + i] * b[4 lane + i], i < 4: a unsigned, b signed. Neighbouring products must
// sum to less than 2^15 in magnitude: on AVX2 they pass through 16 bits (see `int8.cpp` for why they do).
static inline i32x8 dot4(i32x8 total, i32x8 a, i32x8 b) {
#if defined(__AVX2__)
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
#if defined(__AVX2__)
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

// Bytes are kept modulo 256: the callers' values fit eight bits, signed or unsigned.
static inline void store_bytes(uint8_t* to, i32v values) {
#if defined(__AVX512VNNI__)
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)values));
#elif defined(__AVX2__)
    const __m128i low = _mm256_castsi256_si128((__m256i)values), high = _mm256_extracti128_si256((__m256i)values, 1);
    const __m128i words = _mm_packs_epi32(low, high);
    _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(_mm_and_si128(words, _mm_set1_epi16(255)), words));
#else
    for (int lane = 0; lane < VECTOR; lane++) to[lane] = uint8_t(values[lane]);
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

// A vector of IEEE half floats.
static inline f32v from_half(const uint16_t* from) {
#if defined(__AVX512VNNI__)
    return (f32v)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
    return (f32v)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    f32v result;
    for (int lane = 0; lane < VECTOR; lane++) {
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

#if defined(__AVX512VNNI__)
static inline f32v larger(f32v a, f32v b) { return (f32v)_mm512_max_ps((__m512)a, (__m512)b); }
static inline f32v smaller(f32v a, f32v b) { return (f32v)_mm512_min_ps((__m512)a, (__m512)b); }
static inline float sum_of(f32v v) { return _mm512_reduce_add_ps((__m512)v); }
static inline float largest_of(f32v v) { return _mm512_reduce_max_ps((__m512)v); }
static inline float smallest_of(f32v v) { return _mm512_reduce_min_ps((__m512)v); }
static inline f32v rounded(f32v v) {
    return (f32v)_mm512_roundscale_ps((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline f32v to_float(i32v v) { return __builtin_convertvector(v, f32v); }
static inline i32v to_int(f32v v) { return __builtin_convertvector(v, i32v); }
static inline i32v dot4(i32v total, i32v a, i32v b) {
    return (i32v)_mm512_dpbusd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
}
static inline i32v dot_pairs(i32v total, i32v a, i32v b) {
    return (i32v)_mm512_dpwssd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
}
static inline void store_shorts(int16_t* to, i32v values) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtsepi32_epi16((__m512i)values));
}
#endif

// e^x to 2 units in the last place for x in -87.3..88.3, the nearer bound's value beyond. NaN stays NaN: it is the second
// of two compared values, which comparisons that fail return.
template <class F>
static inline F exponential(F x) {
    const F bounded = smaller(splat<F>(88.3f), larger(splat<F>(-87.3f), x));
    const F shifted = bounded * 1.44269504f + 0x1.8p23f;  // the lowest bits are the nearest integer
    const F n = shifted - 0x1.8p23f;
    const F r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    F p = splat<F>(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (F)(((Integers<F>)shifted + 127) << 23);
}

constexpr float LOG2E = 1.44269504f;

// 2^x for x up to 0, and 2^-126 for x below -126; NaN stays NaN. `factors` are those of a polynomial for 2^x, |x| <= 1/2,
// the highest first.
template <int N>
static inline f32v power(f32v x, const float (&factors)[N]) {
    const f32v bounded = larger(splat<f32v>(-126.0f), x), shifted = bounded + 0x1.8p23f;  // its lowest bits: the nearest integer
    const f32v f = bounded - (shifted - 0x1.8p23f);
    f32v p = splat<f32v>(factors[0]);
    unrolled<N - 1>([&](auto i) { p = p * f + factors[i + 1]; });
    return p * (f32v)(((i32v)shifted + 127) << 23);
}
