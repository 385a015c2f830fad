// What the host library tells about itself. Built once, for the lowest level of instruction sets.

// Which of the variants that this library holds the processor can run; see hydrax_gpu/_kernels/build.py.
extern "C" __attribute__((visibility("default"))) int hx_level() {
#if defined(__x86_64__) && defined(HX_LEVEL_3)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
        __builtin_cpu_supports("bmi2"))
        return 3;
#endif
    return 1;
}

// Of the sources that it was built from.
extern "C" __attribute__((visibility("default"))) const char* hx_digest() { return HX_DIGEST; }
