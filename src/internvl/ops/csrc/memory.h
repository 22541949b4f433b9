// Memory that a thread keeps from call to call: fresh pages cost more than the small products that need them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // At least so many bytes, beginning at a cache line; what they held before is lost.
    char* at_least(int64_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = 0;
            memory_ = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
            if (!memory_) throw std::bad_alloc();
            size_ = bytes;
        }
        return memory_;
    }

    float* floats(int64_t count) { return reinterpret_cast<float*>(at_least(count * 4)); }

  private:
    char* memory_ = nullptr;
    int64_t size_ = 0;
};
