// srgb_oklab: colours from sRGB to Oklab and back.
//
// sRGB's transfer function is that of IEC 61966-2-1; Oklab is Björn Ottosson's, from "A perceptual color space for image
// processing" (https://bottosson.github.io/posts/oklab/), with the matrices as he gives them for linear sRGB:
//
//   linear = x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4          x in 0..1
//   l, m, s = M1 linear;   L, a, b = M2 (cbrt l, cbrt m, cbrt s)
//
// and the inverses for the way back. The functions go on beyond 0..1; what is not finite gives NaN. All steps are of
// binary32, in the order that is written here. Roots are taken by iterations that are part of the definition, and are
// good to some units in the last place.
//
//   in        (rows, pixels, 3) or (rows, 3, pixels); sRGB as u8 (0..255) or f32 (0..1), Oklab as f32 f16 bf16
//   out       as in: Oklab as f32 f16 bf16, sRGB as f32 or u8, which saturates
//   linear    (256,) f32: the linear value of each u8; null for other inputs
//
// There is a kernel for each way of the channels, as in convert: srgb_to_oklab_WAY_IN_OUT and oklab_to_srgb_WAY_IN_OUT,
// where WAY is `last`, `planes` (from sRGB only) or `pixels` (to sRGB only). in and out do not overlap and are aligned for
// their element. Grid: y over rows, x over tiles of the pixels. NumPy twins: hydrax_gpu._kernels.srgb_oklab.to_oklab and
// to_srgb
#include "common.cuh"

struct SrgbOklabArgs {
    const void* in;
    void* out;
    const f32* linear;
    i64 in_stride;
    i64 out_stride;
    i64 rows;
    i64 pixels;
};

namespace {

constexpr int kTile = 1024;  // pixels

struct Three {
    f32 x, y, z;
};

HX_FN f32 dot(f32 a, f32 x, f32 b, f32 y, f32 c, f32 z) { return a * x + b * y + c * z; }

// The exponent is divided in the bits, which is good to a few per cent; each of Halley's steps triples the digits.
HX_FN f32 cube_root(f32 x) {
    const u32 bits = bits_of(x), magnitude = bits & 0x7fffffffu;
    const f32 y = of_bits(magnitude);
    f32 r = of_bits(magnitude / 3 + 0x2a512ce3u);
    HX_UNROLL
    for (int k = 0; k < 2; ++k) {
        const f32 cube = r * r * r;
        r = r * ((cube + (y + y)) / (cube + cube + y));
    }
    r = magnitude != 0 ? r : 0.0f;
    return of_bits(bits_of(r) | (bits & 0x80000000u));
}

// Of a number from about 0.09 on. Newton's steps double the digits.
HX_FN f32 fifth_root(f32 x) {
    f32 r = of_bits(bits_of(x) / 5 + 0x32c9af22u);
    HX_UNROLL
    for (int k = 0; k < 3; ++k) {
        const f32 square = r * r;
        r = (r * 4.0f + x / (square * square)) / 5.0f;
    }
    return r;
}

HX_FN f32 to_linear(f32 x) {
    const f32 base = (x + 0.055f) / 1.055f;
    const f32 root = fifth_root(base < 0.09f ? 0.09f : base);
    const f32 curved = base * base * (root * root);  // base ** (2 + 2/5)
    return x <= 0.04045f ? x / 12.92f : curved;
}

HX_FN f32 from_linear(f32 x) {
    const f32 root = square_root(square_root(cube_root(x > 0.0f ? x : 0.0f)));
    const f32 square = root * root;
    const f32 curved = 1.055f * (square * square * root) - 0.055f;  // x ** (5/12)
    const f32 y = x <= 0.0031308f ? 12.92f * x : curved;
    return x == x ? y : x;
}

HX_FN Three oklab_of(Three c) {
    const f32 l = cube_root(dot(0.4122214708f, c.x, 0.5363325363f, c.y, 0.0514459929f, c.z));
    const f32 m = cube_root(dot(0.2119034982f, c.x, 0.6806995451f, c.y, 0.1073969566f, c.z));
    const f32 s = cube_root(dot(0.0883024619f, c.x, 0.2817188376f, c.y, 0.6299787005f, c.z));
    return {dot(0.2104542553f, l, 0.7936177850f, m, -0.0040720468f, s),
            dot(1.9779984951f, l, -2.4285922050f, m, 0.4505937099f, s),
            dot(0.0259040371f, l, 0.7827717662f, m, -0.8086757660f, s)};
}

HX_FN Three linear_of(Three c) {
    const f32 l = dot(1.0f, c.x, 0.3963377774f, c.y, 0.2158037573f, c.z);
    const f32 m = dot(1.0f, c.x, -0.1055613458f, c.y, -0.0638541728f, c.z);
    const f32 s = dot(1.0f, c.x, -0.0894841775f, c.y, -1.2914855480f, c.z);
    const f32 l3 = l * l * l, m3 = m * m * m, s3 = s * s * s;
    return {dot(4.0767416621f, l3, -3.3077115913f, m3, 0.2309699292f, s3),
            dot(-1.2684380046f, l3, 2.6097574011f, m3, -0.3413193965f, s3),
            dot(-0.0041960863f, l3, -0.7034186147f, m3, 1.7076147010f, s3)};
}

template <class In>
HX_FN f32 decoded(In x, const f32* linear) {
    if constexpr (sizeof(In) == 1)
        return linear[x];
    else
        return to_linear(x);
}

template <class Out>
HX_FN f32 encoded(f32 x) {
    const f32 y = from_linear(x);
    return sizeof(Out) == 1 ? y * 255.0f : y;
}

// The channels of a tile's pixels one by one, through the transfer function, and in a phase of its own the three together.
template <class In, class Out, bool planes>
HX_FN void to_oklab(const SrgbOklabArgs& a) {
    HX_SHARED(f32, shared, 3 * kTile);
    const f32* __restrict__ linear = a.linear;
    HX_BLOCKS(row, a.rows, tile, ceil_div(a.pixels, kTile)) {
        const i64 begin = tile * kTile;
        const int n = (int)least<i64>(kTile, a.pixels - begin);
        HX_SYNC();
        map(at<In>(a.in, row * a.in_stride) + begin * 3, shared, 3 * n, [=](int, In x) { return decoded(x, linear); });
        HX_SYNC();
        Out* __restrict__ out = at<Out>(a.out, row * a.out_stride) + (planes ? begin : begin * 3);
        const i64 pixel = planes ? 1 : 3, channel = planes ? a.pixels : 1;
        HX_FOR(k, n) {
            const Three c = oklab_of({shared[3 * k], shared[3 * k + 1], shared[3 * k + 2]});
            out[k * pixel] = from_f32<Out>(c.x);
            out[k * pixel + channel] = from_f32<Out>(c.y);
            out[k * pixel + 2 * channel] = from_f32<Out>(c.z);
        }
    }
}

template <class In, class Out, bool planes>
HX_FN void to_srgb(const SrgbOklabArgs& a) {
    HX_SHARED(f32, shared, 3 * kTile);
    HX_BLOCKS(row, a.rows, tile, ceil_div(a.pixels, kTile)) {
        const i64 begin = tile * kTile;
        const int n = (int)least<i64>(kTile, a.pixels - begin);
        const In* __restrict__ in = at<In>(a.in, row * a.in_stride) + (planes ? begin : begin * 3);
        const i64 pixel = planes ? 1 : 3, channel = planes ? a.pixels : 1;
        HX_SYNC();
        HX_FOR(k, n) {
            const Three c = linear_of(
                {to_f32(in[k * pixel]), to_f32(in[k * pixel + channel]), to_f32(in[k * pixel + 2 * channel])});
            shared[3 * k] = c.x;
            shared[3 * k + 1] = c.y;
            shared[3 * k + 2] = c.z;
        }
        HX_SYNC();
        map_rounded(shared, at<Out>(a.out, row * a.out_stride) + begin * 3, 3 * n,
                    [](int, f32 x) { return encoded<Out>(x); });
    }
}

}  // namespace

#define TO_OKLAB(In, Out)                                                                                   \
    HX_KERNEL(srgb_to_oklab_last_##In##_##Out, SrgbOklabArgs) { to_oklab<In, Out, false>(args); }           \
    HX_KERNEL(srgb_to_oklab_planes_##In##_##Out, SrgbOklabArgs) { to_oklab<In, Out, true>(args); }
#define TO_SRGB(In, Out)                                                                                    \
    HX_KERNEL(oklab_to_srgb_last_##In##_##Out, SrgbOklabArgs) { to_srgb<In, Out, false>(args); }            \
    HX_KERNEL(oklab_to_srgb_pixels_##In##_##Out, SrgbOklabArgs) { to_srgb<In, Out, true>(args); }

TO_OKLAB(u8, f32)
TO_OKLAB(u8, f16)
TO_OKLAB(u8, bf16)
TO_OKLAB(f32, f32)
TO_OKLAB(f32, f16)
TO_OKLAB(f32, bf16)
TO_SRGB(f32, f32)
TO_SRGB(f16, f32)
TO_SRGB(bf16, f32)
TO_SRGB(f32, u8)
TO_SRGB(f16, u8)
TO_SRGB(bf16, u8)
