// convert: out = in * scale[c] + bias[c], converted to another dtype and, if asked for, to the other order of channels.
//
// A row is an item: `pixels` pixels of `channels` channels each, pixel after pixel (last) or plane after plane (first).
// The product and the sum are each rounded to binary32; the sum is rounded to the output's dtype as from_f32 has it:
// to nearest, ties to even; u8 saturates to 0..255, and NaN becomes 0 there.
//
//   in       (rows, pixels * channels), any of u8 i8 u16 i16 i32 f16 bf16 f32; rows in_stride bytes apart
//   out      (rows, pixels * channels), any of u8 f16 bf16 f32; rows out_stride bytes apart
//   scale    (channels,) f32
//   bias     (channels,) f32
//
// There is a kernel for each way of the channels, convert_WAY_IN_OUT: `last` and `first` keep the order, `planes` makes
// first of last, `pixels` last of first.
// in and out do not overlap and are aligned for their element. Grid: y over rows, x over tiles of a row.
// NumPy twin: hydrax_gpu._kernels.convert.twin
#include "common.cuh"

struct ConvertArgs {
    const void* in;
    void* out;
    const f32* scale;
    const f32* bias;
    i64 in_stride;
    i64 out_stride;
    i64 rows;
    i64 pixels;
    i64 channels;
};

namespace {

constexpr int kSpan = 1024;   // elements whose scale and bias are spread out in shared memory
constexpr int kPlane = 4096;  // elements of a tile within a plane
constexpr int kFew = 16;      // channels that are taken apart or put together within a tile
constexpr int kStage = 4096;  // elements of such a tile
constexpr int kEdge = 32;     // of a square tile that is transposed
static_assert(kEdge * (kEdge + 1) <= kStage, "both are staged in the same memory");

template <class Out>
HX_FN Out affine(f32 x, f32 scale, f32 bias) {
    return from_f32<Out>(x * scale + bias);
}

template <class In, class Out>
HX_FN void span(const In* in, Out* out, const f32* scale, const f32* bias, int n) {
    map_rounded(in, out, n, [=](int i, In x) { return to_f32(x) * scale[i] + bias[i]; });
}

// Channels last, and few: the pattern of the channels is laid out once, so that no remainder is taken per element.
template <class In, class Out>
HX_FN void last_few(const ConvertArgs& a) {
    HX_SHARED(f32, scale, kSpan);
    HX_SHARED(f32, bias, kSpan);
    const int channels = (int)a.channels;
    // the offset of a tile stays a multiple of 16 elements, so that it does not disturb the alignment
    const int whole = kSpan / (channels * 16) * (channels * 16);
    const int length = whole ? whole : kSpan / channels * channels;
    HX_FOR(i, length) {
        scale[i] = a.scale[i % channels];
        bias[i] = a.bias[i % channels];
    }
    HX_SYNC();
    const i64 count = a.pixels * a.channels;
    HX_BLOCKS(row, a.rows, tile, ceil_div(count, length)) {
        const i64 begin = tile * length;
        span(at<In>(a.in, row * a.in_stride) + begin, at<Out>(a.out, row * a.out_stride) + begin, scale, bias,
             (int)least<i64>(length, count - begin));
    }
}

template <class In, class Out>
HX_FN void last_many(const ConvertArgs& a) {
    const i64 parts = ceil_div(a.channels, kSpan);
    HX_BLOCKS(row, a.rows, tile, a.pixels * parts) {
        const i64 channel = tile % parts * kSpan;
        const i64 begin = tile / parts * a.channels + channel;
        span(at<In>(a.in, row * a.in_stride) + begin, at<Out>(a.out, row * a.out_stride) + begin, a.scale + channel,
             a.bias + channel, (int)least<i64>(kSpan, a.channels - channel));
    }
}

template <class In, class Out>
HX_FN void first(const ConvertArgs& a) {
    const i64 parts = ceil_div(a.pixels, kPlane);
    HX_BLOCKS(row, a.rows, tile, a.channels * parts) {
        const i64 channel = tile / parts;
        const i64 pixel = tile % parts * kPlane;
        const i64 begin = channel * a.pixels + pixel;
        const f32 scale = a.scale[channel], bias = a.bias[channel];
        map_rounded(at<In>(a.in, row * a.in_stride) + begin, at<Out>(a.out, row * a.out_stride) + begin,
                    (int)least<i64>(kPlane, a.pixels - pixel), [=](int, In x) { return to_f32(x) * scale + bias; });
    }
}

// Few channels, pixels to planes: a stretch of pixels goes to shared memory as it is, and from there plane by plane.
template <class In, class Out>
HX_FN void planes_few(const ConvertArgs& a, In* shared) {
    const int channels = (int)a.channels;
    const int length = kStage / channels / 16 * 16;  // pixels; keeps the alignment of planes and of pixels
    HX_BLOCKS(row, a.rows, tile, ceil_div(a.pixels, length)) {
        const i64 begin = tile * length;
        const int n = (int)least<i64>(length, a.pixels - begin);
        HX_SYNC();
        map(at<In>(a.in, row * a.in_stride) + begin * channels, shared, n * channels, [](int, In x) { return x; });
        HX_SYNC();
        for (int c = 0; c < channels; ++c) {
            const f32 scale = a.scale[c], bias = a.bias[c];
            generate(at<Out>(a.out, row * a.out_stride) + c * a.pixels + begin, n, [&](int i) {
                return affine<Out>(to_f32(shared[i * channels + c]), scale, bias);
            });
        }
    }
}

template <class In, class Out>
HX_FN void pixels_few(const ConvertArgs& a, In* shared) {
    const int channels = (int)a.channels;
    const int length = kStage / channels / 16 * 16;
    HX_BLOCKS(row, a.rows, tile, ceil_div(a.pixels, length)) {
        const i64 begin = tile * length;
        const int n = (int)least<i64>(length, a.pixels - begin);
        HX_SYNC();
        for (int c = 0; c < channels; ++c)
            map(at<In>(a.in, row * a.in_stride) + c * a.pixels + begin, shared + c * length, n,
                [](int, In x) { return x; });
        HX_SYNC();
        generate(at<Out>(a.out, row * a.out_stride) + begin * channels, n * channels, [&](int i) {
            const int c = i % channels, p = i / channels;
            return affine<Out>(to_f32(shared[c * length + p]), a.scale[c], a.bias[c]);
        });
    }
}

#ifndef __CUDACC__
// The same for a number of channels that the compiler knows, which it can then vectorise over the pixels.
template <class In, class Out, int C>
HX_FN void last_to_first(const In* __restrict__ in, Out* __restrict__ out, const ConvertArgs& a) {
    f32 scale[C], bias[C];
    for (int c = 0; c < C; ++c) scale[c] = a.scale[c], bias[c] = a.bias[c];
    if constexpr (buffered<Out>) {
        alignas(64) f32 buffer[C][kBuffer];
        for (i64 begin = 0; begin < a.pixels; begin += kBuffer) {
            const int n = (int)least<i64>(kBuffer, a.pixels - begin);
            for (int p = 0; p < n; ++p)
                for (int c = 0; c < C; ++c) buffer[c][p] = to_f32(in[(begin + p) * C + c]) * scale[c] + bias[c];
            for (int c = 0; c < C; ++c) round_all(buffer[c], out + c * a.pixels + begin, n);
        }
        return;
    }
    for (i64 p = 0; p < a.pixels; ++p)
        for (int c = 0; c < C; ++c) out[c * a.pixels + p] = affine<Out>(to_f32(in[p * C + c]), scale[c], bias[c]);
}

template <class In, class Out, int C>
HX_FN void first_to_last(const In* __restrict__ in, Out* __restrict__ out, const ConvertArgs& a) {
    f32 scale[C], bias[C];
    for (int c = 0; c < C; ++c) scale[c] = a.scale[c], bias[c] = a.bias[c];
    if constexpr (buffered<Out>) {
        alignas(64) f32 buffer[kBuffer * C];
        for (i64 begin = 0; begin < a.pixels; begin += kBuffer) {
            const int n = (int)least<i64>(kBuffer, a.pixels - begin);
            for (int p = 0; p < n; ++p)
                for (int c = 0; c < C; ++c) buffer[p * C + c] = to_f32(in[c * a.pixels + begin + p]) * scale[c] + bias[c];
            round_all(buffer, out + begin * C, n * C);
        }
        return;
    }
    for (i64 p = 0; p < a.pixels; ++p)
        for (int c = 0; c < C; ++c) out[p * C + c] = affine<Out>(to_f32(in[c * a.pixels + p]), scale[c], bias[c]);
}

template <class In, class Out>
HX_FN void rgb(const ConvertArgs& a, bool to_planes) {
    for (i64 row = 0; row < a.rows; ++row) {
        const In* in = at<In>(a.in, row * a.in_stride);
        Out* out = at<Out>(a.out, row * a.out_stride);
        to_planes ? last_to_first<In, Out, 3>(in, out, a) : first_to_last<In, Out, 3>(in, out, a);
    }
}
#endif

// A matrix to its transpose through a tile of shared memory, one column wider than it need be, so that a column of it
// lies in as many banks as a row.
template <class In, class Out>
HX_FN void transpose(const ConvertArgs& a, In* shared, i64 height, i64 width, bool channel_is_column) {
    const i64 across = ceil_div(width, kEdge);
    HX_BLOCKS(row, a.rows, tile, ceil_div(height, kEdge) * across) {
        const i64 y = tile / across * kEdge, x = tile % across * kEdge;
        const int h = (int)least<i64>(kEdge, height - y), w = (int)least<i64>(kEdge, width - x);
        const In* in = at<In>(a.in, row * a.in_stride) + y * width + x;
        Out* out = at<Out>(a.out, row * a.out_stride) + x * height + y;
        HX_SYNC();
        HX_FOR(e, kEdge * kEdge) {
            const int r = e / kEdge, c = e % kEdge;
            if (r < h && c < w) shared[r * (kEdge + 1) + c] = in[r * width + c];
        }
        HX_SYNC();
        HX_FOR(e, kEdge * kEdge) {
            const int c = e / kEdge, r = e % kEdge;
            if (r < h && c < w) {
                const i64 channel = channel_is_column ? x + c : y + r;
                out[c * height + r] =
                    affine<Out>(to_f32(shared[r * (kEdge + 1) + c]), a.scale[channel], a.bias[channel]);
            }
        }
    }
}

template <class In, class Out>
HX_FN void last(const ConvertArgs& a) {
    a.channels <= kSpan ? last_few<In, Out>(a) : last_many<In, Out>(a);
}

template <class In, class Out>
HX_FN void planes(const ConvertArgs& a) {
#ifndef __CUDACC__
    if (a.channels == 3) return rgb<In, Out>(a, true);
#endif
    HX_SHARED(In, shared, kStage);
    a.channels <= kFew ? planes_few<In, Out>(a, shared) : transpose<In, Out>(a, shared, a.pixels, a.channels, true);
}

template <class In, class Out>
HX_FN void pixels(const ConvertArgs& a) {
#ifndef __CUDACC__
    if (a.channels == 3) return rgb<In, Out>(a, false);
#endif
    HX_SHARED(In, shared, kStage);
    a.channels <= kFew ? pixels_few<In, Out>(a, shared) : transpose<In, Out>(a, shared, a.channels, a.pixels, false);
}

}  // namespace

#define CONVERT_WAY(way, In, Out) CONVERT_WAY_(way, In, Out)
#define CONVERT_WAY_(way, In, Out) \
    HX_KERNEL(convert_##way##_##In##_##Out, ConvertArgs) { way<In, Out>(args); }
#define CONVERT(In, Out)           \
    CONVERT_WAY(last, In, Out)     \
    CONVERT_WAY(first, In, Out)    \
    CONVERT_WAY(planes, In, Out)   \
    CONVERT_WAY(pixels, In, Out)
#define CONVERT_FROM(In) CONVERT(In, u8) CONVERT(In, f16) CONVERT(In, bf16) CONVERT(In, f32)

#ifdef HX_IN  // CUDA compiles what is asked for
CONVERT(HX_IN, HX_OUT)
#else
CONVERT_FROM(u8)
CONVERT_FROM(i8)
CONVERT_FROM(u16)
CONVERT_FROM(i16)
CONVERT_FROM(i32)
CONVERT_FROM(f16)
CONVERT_FROM(bf16)
CONVERT_FROM(f32)
#endif
