// unpack_bits: numbers of 1, 2 or 4 bits, packed into bytes, to one element each.
//
// A row is an item of `lines` lines; each line begins with a byte of its own and has `width` elements. What a byte
// becomes is in a table, which is made for the number of bits, their order and the output's dtype: the kernel itself
// knows none of them.
//
//   in      (rows, lines, ceil(width / per_byte)) u8; rows in_stride bytes apart
//   out     (rows, lines, width) elements; rows out_stride bytes apart
//   table   (256, per_byte) elements: what each byte holds; aligned to 16 bytes
//
// There is a kernel for each size of what a byte becomes, unpack_bits_UNIT with UNIT = per_byte * sizeof(element) bytes.
// in and out do not overlap and are aligned for their element. Grid: y over rows, x over tiles of the lines.
// NumPy twin: hydrax_gpu._kernels.unpack_bits.twin
#include "common.cuh"

struct UnpackBitsArgs {
    const void* in;
    void* out;
    const void* table;
    i64 in_stride;
    i64 out_stride;
    i64 rows;
    i64 lines;
    i64 width;
    i64 per_byte;
};

namespace {

constexpr int kBytes = 1024;  // of the input, in a tile

template <int N>
struct Bytes {
    u8 each[N];
};

template <int N>
HX_FN void unpack(const u8* __restrict__ in, u8* __restrict__ out, const u8* __restrict__ table, int n) {
#ifdef __CUDACC__
    constexpr int A = N < 16 ? N : 16;
    if (!((u64)out % A)) {
        HX_FOR(k, n * (N / A)) {
            const int byte = k / (N / A), part = k % (N / A);
            reinterpret_cast<Pack<u8, A>*>(out)[k] =
                reinterpret_cast<const Pack<u8, A>*>(table)[in[byte] * (N / A) + part];
        }
        return;
    }
    HX_FOR(k, n * N) out[k] = table[in[k / N] * N + k % N];
#else
    for (int k = 0; k < n; ++k)
        reinterpret_cast<Bytes<N>*>(out)[k] = reinterpret_cast<const Bytes<N>*>(table)[in[k]];
#endif
}

template <int N>
HX_FN void unpack_bits(const UnpackBitsArgs& a) {
    const u8* table = static_cast<const u8*>(a.table);
    const int size = (int)(N / a.per_byte);               // bytes of an element
    const i64 whole = a.width / a.per_byte;               // bytes of a line that are used up
    const int rest = (int)(a.width % a.per_byte) * size;  // bytes that the last one becomes
    const i64 line_bytes = whole + (rest > 0);
    const i64 parts = ceil_div(whole, kBytes) + (rest > 0);
    HX_BLOCKS(row, a.rows, tile, a.lines * parts) {
        const i64 line = tile / parts, begin = tile % parts * kBytes;
        const u8* in = at<u8>(a.in, row * a.in_stride) + line * line_bytes;
        u8* out = at<u8>(a.out, row * a.out_stride) + line * a.width * size;
        if (begin < whole) {
            unpack<N>(in + begin, out + begin * N, table, (int)least<i64>(kBytes, whole - begin));
        } else {
            HX_FOR(k, rest) out[whole * N + k] = table[in[whole] * N + k];
        }
    }
}

}  // namespace

#define UNPACK_BITS(N) \
    HX_KERNEL(unpack_bits_##N, UnpackBitsArgs) { unpack_bits<N>(args); }

UNPACK_BITS(2)
UNPACK_BITS(4)
UNPACK_BITS(8)
UNPACK_BITS(16)
UNPACK_BITS(32)
