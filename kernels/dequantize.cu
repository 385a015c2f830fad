// dequantize: out = code * scale, where a block of neighbouring elements shares a scale.
//
// A row is an item of `lines` lines of `width` elements. A line is cut into blocks of `block` elements, the last of which
// may be shorter; blocks do not reach over lines. The product is rounded to binary32 and then to the output's dtype, as
// from_f32 has it.
//
//   in      (rows, lines, width) i8 f8e4m3fn f8e5m2, or (rows, lines, width / 2) bytes for i4, whose two elements are in
//           two's complement, the first in the lower four bits; rows in_stride bytes apart
//   scales  (rows, lines, ceil(width / block)) f16 bf16 f32; rows scale_stride bytes apart
//   out     (rows, lines, width) f16 bf16 f32; rows out_stride bytes apart
//
// For i4, block and width are even. Nothing overlaps, and all is aligned for its element. Grid: y over rows, x over tiles
// of the lines. NumPy twin: hydrax_gpu._kernels.dequantize.twin
#include "common.cuh"

struct DequantizeArgs {
    const void* in;
    const void* scales;
    void* out;
    i64 in_stride;
    i64 scale_stride;
    i64 out_stride;
    i64 rows;
    i64 lines;
    i64 width;
    i64 block;
};

namespace {

constexpr int kTile = 4096;  // elements

struct i4 {};  // two in a byte

template <class In>
struct Codes {
    static HX_FN const In* read(const void* row, i64 element, int, In*) {
        return static_cast<const In*>(row) + element;
    }
    using Element = In;
    static constexpr int staged = 1;
};

template <>
struct Codes<i4> {
    static HX_FN const i8* read(const void* row, i64 element, int n, i8* staged) {
        const u8* in = static_cast<const u8*>(row) + element / 2;
        HX_SYNC();
        HX_FOR(k, n / 2) {
            staged[2 * k] = (i8)(((in[k] & 15) ^ 8) - 8);
            staged[2 * k + 1] = (i8)(((in[k] >> 4) ^ 8) - 8);
        }
        HX_SYNC();
        return staged;
    }
    using Element = i8;
    static constexpr int staged = kTile;
};

template <class In, class Scale, class Out>
HX_FN void dequantize(const DequantizeArgs& a) {
    using Element = typename Codes<In>::Element;
    HX_SHARED(Element, staged, Codes<In>::staged);
    const i64 parts = ceil_div(a.width, kTile);
    const i64 blocks = ceil_div(a.width, a.block);
    HX_BLOCKS(row, a.rows, tile, a.lines * parts) {
        const i64 line = tile / parts, begin = tile % parts * kTile;
        const int n = (int)least<i64>(kTile, a.width - begin);
        const i64 element = line * a.width + begin;
        const Element* in = Codes<In>::read(at<u8>(a.in, row * a.in_stride), element, n, staged);
        const Scale* scales = at<Scale>(a.scales, row * a.scale_stride) + line * blocks + begin / a.block;
        map_blocks(in, at<Out>(a.out, row * a.out_stride) + element, n, (u32)(begin % a.block), (u32)a.block,
                   [=](u32 b, Element x) { return to_f32(x) * to_f32(scales[b]); });
    }
}

}  // namespace

#define DEQUANTIZE_(In, Scale, Out) \
    HX_KERNEL(dequantize_##In##_##Scale##_##Out, DequantizeArgs) { dequantize<In, Scale, Out>(args); }
#define DEQUANTIZE(In, Scale, Out) DEQUANTIZE_(In, Scale, Out)
#define DEQUANTIZE_TO(In, Out) DEQUANTIZE(In, f16, Out) DEQUANTIZE(In, bf16, Out) DEQUANTIZE(In, f32, Out)
#define DEQUANTIZE_FROM(In) DEQUANTIZE_TO(In, f16) DEQUANTIZE_TO(In, bf16) DEQUANTIZE_TO(In, f32)

#ifdef HX_IN  // CUDA compiles what is asked for
DEQUANTIZE_TO(HX_IN, HX_OUT)
#else
DEQUANTIZE_FROM(i8)
DEQUANTIZE_FROM(i4)
DEQUANTIZE_FROM(f8e4m3fn)
DEQUANTIZE_FROM(f8e5m2)
#endif
