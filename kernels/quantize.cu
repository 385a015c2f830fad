// quantize: records of codes of a byte, and of a scale that a block of 64 neighbours shares. dequantize undoes it.
//
// A row is an item of `count` elements, whose blocks are cut from it as it lies in memory; the last may be shorter. The
// scale of a block is its largest magnitude / 127, 2^-126 at least, and at most what 127 can be multiplied by; a code is the
// element times 1 / scale, rounded to the nearest integer, ties to even. Where not all elements of a block are finite, its scale is infinity and its codes
// are 0.
//
//   in      (rows, count) f16 bf16 f32; rows in_stride bytes apart
//   out     (rows, out_bytes) u8: the codes, zeros, from scales_offset on ceil(count / 64) scales, binary32, and zeros;
//           rows out_stride bytes apart
//
// scales_offset is a multiple of 4, as are out and out_stride. Nothing overlaps, and all is aligned for its element. Grid:
// y over rows, x over tiles of their blocks. NumPy twin: hydrax_gpu._kernels.quantize.twin
#include "common.cuh"

struct QuantizeArgs {
    const void* in;
    void* out;
    i64 in_stride;
    i64 out_stride;
    i64 rows;
    i64 count;
    i64 scales_offset;
    i64 out_bytes;
};

namespace {

constexpr int kBlock = 64;
constexpr int kBlocks = 256;  // of a tile

template <class In>
HX_FN void quantize_block(const In* __restrict__ in, i8* __restrict__ codes, f32* scale, int n) {
    u32 largest = 0;
    for (int i = 0; i < n; ++i) {
        const u32 magnitude = bits_of(to_f32(in[i])) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (largest >= 0x7f800000u) {
        *scale = of_bits(0x7f800000u);
        for (int i = 0; i < n; ++i) codes[i] = 0;
        return;
    }
    const f32 wanted = of_bits(largest) / 127.0f;
    const f32 chosen = least(wanted > 0x1p-126f ? wanted : 0x1p-126f, 0x1.020406p+121f);
    const f32 factor = 1.0f / chosen;
    *scale = chosen;
    for (int i = 0; i < n; ++i) codes[i] = (i8)(u8)(bits_of(to_f32(in[i]) * factor + 0x1.8p23f) & 0xffu);
}

template <class In>
HX_FN void quantize(const QuantizeArgs& a) {
    const i64 blocks = ceil_div(a.count, kBlock);
    HX_BLOCKS(row, a.rows, tile, ceil_div(blocks, kBlocks)) {
        const In* in = at<In>(a.in, row * a.in_stride);
        i8* codes = at<i8>(a.out, row * a.out_stride);
        f32* scales = at<f32>(a.out, row * a.out_stride + a.scales_offset);
        const i64 first = tile * kBlocks;
        HX_FOR(k, (int)least<i64>(kBlocks, blocks - first)) {
            const i64 begin = (first + k) * kBlock;
            if (a.count - begin >= kBlock)
                quantize_block(in + begin, codes + begin, scales + first + k, kBlock);
            else
                quantize_block(in + begin, codes + begin, scales + first + k, (int)(a.count - begin));
        }
        if (tile == 0) {
            const int end = (int)(a.out_bytes - a.scales_offset - 4 * blocks);
            HX_FOR(i, (int)(a.scales_offset - a.count)) codes[a.count + i] = 0;
            HX_FOR(i, end) codes[a.scales_offset + 4 * blocks + i] = 0;
        }
    }
}

}  // namespace

#define QUANTIZE(In) \
    HX_KERNEL(quantize_##In, QuantizeArgs) { quantize<In>(args); }
QUANTIZE(f16)
QUANTIZE(bf16)
QUANTIZE(f32)
