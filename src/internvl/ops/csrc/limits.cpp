// What the processor can do at most, measured: the yardsticks of the benchmarks.
#include <chrono>
#include <vector>

#include "simd.h"

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

// Floating-point operations a second in fused multiply-adds that touch registers alone, on all threads.
extern "C" double multiply_add_rate(double seconds) {
    double total = 0;
#pragma omp parallel reduction(+ : total)
    {
        f32x8 sums[12];
        for (int i = 0; i < 12; i++) sums[i] = splat(0.001f * float(i));
        f32x8 factor = splat(0.9999f), addend = splat(0.0001f);
        double done = 0;
        const double start = now();
        while (now() - start < seconds) {
            for (int round = 0; round < 10000; round++) {
                UNROLL for (int i = 0; i < 6; i++) sums[i] = sums[i] * factor + addend;
                UNROLL for (int i = 6; i < 12; i++) sums[i] = sums[i] * factor + addend;
            }
            done += 10000.0 * 12 * 2 * LANES;
        }
        const double rate = done / (now() - start);
        float kept = 0;
        for (int i = 0; i < 12; i++) kept += sum8(sums[i]);
        total += kept == 12345.0f ? 0.0 : rate;  // the sums must be wanted, or they are not computed
    }
    return total;
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
                UNROLL for (int part = 0; part < 4; part++) sums[part] += load<f32x8>(values.data() + i + part * LANES);
            total += sum8(sums[0] + sums[1] + sums[2] + sums[3]);
        }
        if (total > 0) best = std::max(best, double(bytes) / (now() - start));
    }
    return best;
}
