// What every kernel is written in, for both targets: CUDA (NVRTC or nvcc) and the host (any C++17 compiler).
//
// A kernel is a *block program*: a loop over blocks of work (HX_BLOCKS), in which phases of independent iterations
// (HX_FOR) are separated by HX_SYNC. On CUDA the blocks are spread over the grid and the iterations over the threads of
// a block. On the host all of them are plain loops, which the compiler vectorises: a phase ends before the next begins,
// so that HX_SYNC has nothing to do, and shared memory is a local array.
//
// Both targets compute the same bits. Only +, -, *, / and sqrt of binary32, integer operations and bit casts may be used
// on values: all are correctly rounded on both, when products and sums are not contracted (host: -ffp-contract=off,
// CUDA: -fmad=false) and subnormals are kept (the default of both).
//
// No exceptions, no allocation, no library.
#pragma once

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
using f32 = float;

#if !defined(__CUDACC__) && defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#define HX_AVX2 1
#endif

#define HX_THREADS 256  // of a block; launches use no other number

#ifdef __CUDACC__
#define HX_FN __device__ __forceinline__
#define HX_UNROLL _Pragma("unroll")
#define HX_SHARED(type, name, count) __shared__ alignas(16) type name[count]
#define HX_SYNC() __syncthreads()
#define HX_FOR(i, n) for (int i = (int)threadIdx.x; i < (n); i += HX_THREADS)
#define HX_BLOCKS(row, rows, tile, tiles)                         \
    for (i64 row = blockIdx.y; row < (rows); row += gridDim.y)    \
        for (i64 tile = blockIdx.x; tile < (tiles); tile += gridDim.x)
#define HX_KERNEL(name, Args) extern "C" __global__ void __launch_bounds__(HX_THREADS, 2) name(const Args args)
#else
#define HX_FN inline __attribute__((always_inline))
#define HX_UNROLL
#define HX_SHARED(type, name, count) alignas(64) type name[count]
#define HX_SYNC() (void)0
#define HX_FOR(i, n) for (int i = 0; i < (n); ++i)
#define HX_BLOCKS(row, rows, tile, tiles)        \
    for (i64 row = 0; row < (rows); ++row)       \
        for (i64 tile = 0; tile < (tiles); ++tile)
#define HX_JOIN_(a, b) a##b
#define HX_JOIN(a, b) HX_JOIN_(a, b)
#ifndef HX_PREFIX
#define HX_PREFIX v1_  // names the variant for one level of instruction sets
#endif
#define HX_KERNEL(name, Args) \
    extern "C" __attribute__((visibility("default"))) void HX_JOIN(HX_PREFIX, name)(const Args& args)
#endif

// Bits.

HX_FN u32 bits_of(f32 x) {
#ifdef __CUDACC__
    return __float_as_uint(x);
#else
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
#endif
}

HX_FN f32 of_bits(u32 bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    f32 x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
#endif
}

template <class T>
HX_FN T least(T a, T b) {
    return b < a ? b : a;
}

HX_FN i64 ceil_div(i64 n, i64 d) { return (n + d - 1) / d; }

// Correctly rounded on both targets.
HX_FN f32 square_root(f32 x) {
#ifdef __CUDACC__
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
}

template <class T>
HX_FN const T* at(const void* base, i64 bytes) {
    return reinterpret_cast<const T*>(static_cast<const u8*>(base) + bytes);
}

template <class T>
HX_FN T* at(void* base, i64 bytes) {
    return reinterpret_cast<T*>(static_cast<u8*>(base) + bytes);
}

// Number formats that C++ has no type for. They are kept as their bits; to_f32 is exact, from_f32 rounds to nearest,
// ties to even. Any NaN becomes the one with sign 0 and only the first bit of the fraction set, since the hardware does
// not agree on the others.

struct f16 {  // IEEE 754 binary16
    u16 bits;
};
struct bf16 {  // the upper half of a binary32
    u16 bits;
};
struct f8e4m3fn {  // 4 bits of exponent, 3 of fraction, no infinity
    u8 bits;
};
struct f8e5m2 {  // 5 bits of exponent, 2 of fraction
    u8 bits;
};

HX_FN f32 to_f32(u8 x) { return (f32)(i32)x; }
HX_FN f32 to_f32(i8 x) { return (f32)(i32)x; }
HX_FN f32 to_f32(u16 x) { return (f32)(i32)x; }
HX_FN f32 to_f32(i16 x) { return (f32)(i32)x; }
HX_FN f32 to_f32(i32 x) { return (f32)x; }  // rounds to nearest even beyond 2**24
HX_FN f32 to_f32(f32 x) { return x; }
HX_FN f32 to_f32(bf16 x) { return of_bits((u32)x.bits << 16); }

// Moves the bits of a small float to those of a binary32 and mends the exponent by an exact product, which makes
// normal numbers of subnormal ones too.
HX_FN f32 to_f32(f16 x) {
    const u32 magnitude = x.bits & 0x7fffu;
    const u32 sign = (u32)(x.bits & 0x8000u) << 16;
    const u32 finite = bits_of(of_bits(magnitude << 13) * 0x1p112f);
    const u32 special = 0x7f800000u | magnitude << 13;
    return of_bits(sign | (magnitude < 0x7c00u ? finite : special));
}

HX_FN f32 to_f32(f8e5m2 x) { return to_f32(f16{(u16)(x.bits << 8)}); }

HX_FN f32 to_f32(f8e4m3fn x) {
    const u32 magnitude = x.bits & 0x7fu;
    const u32 sign = (u32)(x.bits & 0x80u) << 24;
    const u32 finite = bits_of(of_bits(magnitude << 20) * 0x1p120f);
    return of_bits(sign | (magnitude != 0x7fu ? finite : 0x7fc00000u));
}

template <class T>
HX_FN T from_f32(f32 x);

template <>
HX_FN f32 from_f32<f32>(f32 x) {
    return x == x ? x : of_bits(0x7fc00000u);
}

template <>
HX_FN bf16 from_f32<bf16>(f32 x) {
    const u32 bits = bits_of(x);
    const u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return bf16{(u16)(x == x ? rounded : 0x7fc0u)};
}

template <>
HX_FN f16 from_f32<f16>(f32 x) {
#ifdef __CUDACC__
    u16 rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return f16{x == x ? rounded : (u16)0x7e00};
#else
    const u32 magnitude = bits_of(x) & 0x7fffffffu;
    const u32 sign = bits_of(x) >> 16 & 0x8000u;
    // From 2**-14 on the exponent is re-biased and 13 bits are rounded off.
    const u32 normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    // Below, adding 1/2 has the adder round at the place of the last bit, 2**-24.
    const u32 subnormal = bits_of(of_bits(magnitude) + 0.5f) - 0x3f000000u;
    u32 result = magnitude < 0x38800000u ? subnormal : normal;
    result = magnitude < 0x477ff000u ? result : 0x7c00u;  // 65520 and more round to infinity
    result |= sign;
    return f16{(u16)(magnitude <= 0x7f800000u ? result : 0x7e00u)};
#endif
}

// To the nearest integer, ties to even, saturated; NaN becomes 0.
template <>
HX_FN u8 from_f32<u8>(f32 x) {
    const f32 low = x > 0.0f ? x : 0.0f;
    const f32 clamped = low < 255.0f ? low : 255.0f;
    return (u8)(bits_of(clamped + 0x1.8p23f) & 0xffu);  // adding 1.5 * 2**23 leaves the integer in the last bits
}

// Several elements that are read or written at once.

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T each[N];
};

// out[i] = f(i, in[i]) for i < n, as one phase. On CUDA the larger of the two is accessed 16 bytes at a time where both
// are aligned for that.
template <class In, class Out, class F>
HX_FN void map(const In* __restrict__ in, Out* __restrict__ out, int n, F f) {
#ifdef __CUDACC__
    constexpr int N = 16 / (sizeof(In) > sizeof(Out) ? sizeof(In) : sizeof(Out));
    const bool aligned = !((u64)in % sizeof(Pack<In, N>) | (u64)out % sizeof(Pack<Out, N>));
    const int packs = aligned ? n / N : 0;
    HX_FOR(k, packs) {
        const Pack<In, N> x = reinterpret_cast<const Pack<In, N>*>(in)[k];
        Pack<Out, N> y;
        HX_UNROLL
        for (int j = 0; j < N; ++j) y.each[j] = f(k * N + j, x.each[j]);
        reinterpret_cast<Pack<Out, N>*>(out)[k] = y;
    }
    HX_FOR(k, n - packs * N) {
        const int i = packs * N + k;
        out[i] = f(i, in[i]);
    }
#else
    for (int i = 0; i < n; ++i) out[i] = f(i, in[i]);
#endif
}

// out[i] = from_f32<Out>(x[i]) for i < n, on the host. Narrow outputs go through a buffer of binary32 and are rounded by
// the processor's own instructions where it has them: compilers find neither these nor the best way to narrow in a loop
// of from_f32.

constexpr int kBuffer = 256;

template <class Out>
constexpr bool buffered = false;

#ifndef __CUDACC__
template <class Out>
HX_FN void round_all(const f32* __restrict__ x, Out* __restrict__ out, int n) {
    for (int i = 0; i < n; ++i) out[i] = from_f32<Out>(x[i]);
}

#ifdef HX_AVX2
template <>
constexpr bool buffered<f16> = true;
template <>
constexpr bool buffered<bf16> = true;
template <>
constexpr bool buffered<u8> = true;

HX_FN __m256 without_nan(__m256 x) {
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

template <>
HX_FN void round_all<f16>(const f32* __restrict__ x, f16* __restrict__ out, int n) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                         _mm256_cvtps_ph(without_nan(_mm256_loadu_ps(x + i)), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; ++i) out[i] = from_f32<f16>(x[i]);
}

// The canonical NaN stays what it is when it is rounded like a number.
HX_FN __m256i upper_halves(const f32* x) {
    const __m256i bits = _mm256_castps_si256(without_nan(_mm256_loadu_ps(x)));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
}

template <>
HX_FN void round_all<bf16>(const f32* __restrict__ x, bf16* __restrict__ out, int n) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i lanes = _mm256_packus_epi32(upper_halves(x + i), upper_halves(x + i + 8));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permute4x64_epi64(lanes, 0xd8));
    }
    for (; i < n; ++i) out[i] = from_f32<bf16>(x[i]);
}

// The maximum of NaN and 0 is the second of them. Adding the number leaves the integer in the low byte, as in from_f32,
// whatever the rounding mode of conversions.
HX_FN __m256i saturated(const f32* x) {
    const __m256 low = _mm256_max_ps(_mm256_loadu_ps(x), _mm256_setzero_ps());
    const __m256 clamped = _mm256_min_ps(low, _mm256_set1_ps(255.0f));
    const __m256i bits = _mm256_castps_si256(_mm256_add_ps(clamped, _mm256_set1_ps(0x1.8p23f)));
    return _mm256_and_si256(bits, _mm256_set1_epi32(0xff));
}

template <>
HX_FN void round_all<u8>(const f32* __restrict__ x, u8* __restrict__ out, int n) {
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        const __m256i low = _mm256_packus_epi32(saturated(x + i), saturated(x + i + 8));
        const __m256i high = _mm256_packus_epi32(saturated(x + i + 16), saturated(x + i + 24));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                            _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
    }
    for (; i < n; ++i) out[i] = from_f32<u8>(x[i]);
}
#endif
#endif

// out[i] = from_f32<Out>(f(i, in[i])) for i < n, as one phase.
template <class In, class Out, class F>
HX_FN void map_rounded(const In* __restrict__ in, Out* __restrict__ out, int n, F f) {
#ifndef __CUDACC__
    if constexpr (buffered<Out>) {
        alignas(64) f32 buffer[kBuffer];
        for (int begin = 0; begin < n; begin += kBuffer) {
            const int count = least(kBuffer, n - begin);
            for (int i = 0; i < count; ++i) buffer[i] = f(begin + i, in[begin + i]);
            round_all(buffer, out + begin, count);
        }
        return;
    }
#endif
    map(in, out, n, [=](int i, In x) { return from_f32<Out>(f(i, x)); });
}

// out[i] = from_f32<Out>(f(b, in[i])) for i < n, where b is the block that the element is in: blocks have `block`
// elements, and the first element is number `first` of block 0. One phase.
template <class In, class Out, class F>
HX_FN void map_blocks(const In* __restrict__ in, Out* __restrict__ out, int n, u32 first, u32 block, F f) {
#ifdef __CUDACC__
    map_rounded(in, out, n, [=](int i, In x) { return f((first + (u32)i) / block, x); });
#else
    if constexpr (buffered<Out>) {
        alignas(64) f32 buffer[kBuffer];
        for (int begin = 0; begin < n; begin += kBuffer) {
            const int count = least(kBuffer, n - begin);
            const u32 done = (first + (u32)begin) / block;
            map_blocks(in + begin, buffer, count, (first + (u32)begin) % block, block,
                       [=](u32 b, In x) { return f(done + b, x); });
            round_all(buffer, out + begin, count);
        }
        return;
    }
    u32 b = 0;
    for (int begin = 0; begin < n; ++b) {
        const int end = (int)least<i64>(n, (i64)(b + 1) * block - first);
        for (int i = begin; i < end; ++i) out[i] = from_f32<Out>(f(b, in[i]));
        begin = end;
    }
#endif
}

// out[i] = f(i) for i < n, as one phase; on CUDA 16 bytes at a time where out is aligned for that.
template <class Out, class F>
HX_FN void generate(Out* __restrict__ out, int n, F f) {
#ifdef __CUDACC__
    constexpr int N = 16 / sizeof(Out);
    const int packs = (u64)out % 16 ? 0 : n / N;
    HX_FOR(k, packs) {
        Pack<Out, N> y;
        HX_UNROLL
        for (int j = 0; j < N; ++j) y.each[j] = f(k * N + j);
        reinterpret_cast<Pack<Out, N>*>(out)[k] = y;
    }
    HX_FOR(k, n - packs * N) out[packs * N + k] = f(packs * N + k);
#else
    for (int i = 0; i < n; ++i) out[i] = f(i);
#endif
}
