// What the processor can do at most, measured: the yardsticks of the benchmarks.
#include <chrono>
#include <vector>

#include "simd.h"

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Operations a second on all threads; a `step`, which touches registers alone, does `operations`.
template <class V, class Step>
double rate(double seconds, double operations, const Step& step) {
    double total = 0;
#pragma omp parallel reduction(+ : total)
    {
        V sums[12];
        unrolled<12>([&](auto i) { sums[i] = V{} + (i() + 1); });  // equal ones would be computed once
        double done = 0;
        const double start = now();
        while (now() - start < seconds) {
            for (int round = 0; round < 10000; round++) unrolled<12>([&](auto i) { sums[i] = step(sums[i]); });
            done += 10000.0 * 12 * operations;
        }
        const double measured = done / (now() - start);
        double kept = 0;
        for (const V& sum : sums)
            for (int lane = 0; lane < VECTOR; lane++) kept += sum[lane];
        total += kept == 12345.0 ? 0.0 : measured;  // the sums must be wanted, or they are not computed
    }
    return total;
}

}  // namespace

// Floating-point operations a second in fused multiply-adds.
extern "C" double multiply_add_rate(double seconds) {
    const f32v factor = splat<f32v>(0.9999f), addend = splat<f32v>(0.0001f);
    return rate<f32v>(seconds, 2 * VECTOR, [=](f32v sum) { return sum * factor + addend; });
}

// Operations a second in products of bytes that are added in 32 bits.
extern "C" double byte_product_rate(double seconds) {
    const i32v row = splat4<i32v>("\1\2\3\4");
    return rate<i32v>(seconds, 8 * VECTOR, [=](i32v sum) { return dot4(sum, sum, row); });
}

// Operations a second in products of 16 bits that are added in 32.
extern "C" double short_product_rate(double seconds) {
    const i32v row = splat4<i32v>("\1\2\3\4");
    return rate<i32v>(seconds, 4 * VECTOR, [=](i32v sum) { return dot_pairs(sum, sum, row); });
}

// Bytes a second read from memory, on all threads; a good deal more memory than the caches hold.
extern "C" double read_rate(int64_t bytes, int64_t rounds) {
    const int64_t count = bytes / 4;
    std::vector<float> values(count, 1.0f);
    double best = 0;
    for (int64_t round = 0; round < rounds; round++) {
        double total = 0;
        const double start = now();
#pragma omp parallel for schedule(static) reduction(+ : total)
        for (int64_t block = 0; block < count / 4096; block++) {
            f32x8 sums[4] = {};
            for (int64_t i = block * 4096; i < (block + 1) * 4096; i += 4 * LANES)
                unrolled<4>([&](auto part) { sums[part] += load<f32x8>(values.data() + i + part * LANES); });
            total += sum_of(sums[0] + sums[1] + sums[2] + sums[3]);
        }
        if (total > 0) best = std::max(best, double(bytes) / (now() - start));
    }
    return best;
}
