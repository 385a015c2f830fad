// resize_crop_flip_normalize: pictures of any size → rows of a batch, by one defined filter, in integers.
//
// Each item is a box in a decoded picture, in eighths of a pixel (so that boxes in pictures which were decoded at M/8 of
// their size are exact). It is resampled to `width` × `height` by the triangle filter with half-pixel centres, whose
// support grows with the reduction, so that there is no aliasing; it sees no pixel outside of the box. First along x,
// then along y. For output x of `n`, box origin b and length l, pixels i, all in units of 1 / (16 n) of a pixel:
//
//   centre   c = 2 n b + (2 x + 1) l           distance  d_i = |8 n (2 i + 1) - c|
//   support  s = max(2 l, 16 n)                weight    w_i = max(0, s - d_i)    for floor(b / 8) <= i < ceil((b + l) / 8)
//   q_i = R(w_0 + ... + w_i) - R(w_0 + ... + w_(i-1)),   R(v) = floor((2**14 v + floor(t / 2)) / t),   t = sum of w_i
//
// The q_i sum to 2**14. With pixels p: along x, h = (sum of q p + 2**6) >> 7; along y, v = sum of q h, which is the
// result times 2**21. Both sums are exact in 32 bits. The output is
//
//   plain u8   (v + 2**20) >> 21                         when `affine` is 0
//   otherwise  f32(v) * scale[c] + bias[c], each rounded, converted as from_f32 has it; `scale` has the 2**-21 in it
//
//   items    one a row, see Item; pictures are u8, 1, 3 or 4 bytes a pixel (the 4th says nothing)
//   out      row `k` begins at k * out_stride bytes; element (y, x, channel) of it is `origin + y * step_y + x * step_x
//            + channel * step_c` elements further: HWC, CHW, flipped and transposed rows are all strides
//   table    i16 scratch of `table_count` elements a row: for each output x, then y: first pixel (its low and its high
//            half), number of pixels, 0, and `taps` weights; taps are even
//   scratch  host only: bytes, at a multiple of 64; hydrax_gpu._kernels.resize_crop_flip_normalize says how many
//
// On CUDA two launches, resize_table and then resize_direct_u8 or another type; grid: y over rows, x over tiles of a
// row. On the host one call, resize_u8 or another type; the others are there too, to be tested.
// NumPy twin: hydrax_gpu._kernels.resize_crop_flip_normalize.twin
#include "common.cuh"

#if !defined(__CUDACC__) && defined(__AVX2__)
#include <immintrin.h>
#endif

struct Item {
    const u8* in;
    i64 in_stride;   // bytes from one row of the picture to the next
    i32 pixel;       // bytes of a pixel
    i32 columns;     // of the picture
    i32 box[4];      // x, y, width, height, in eighths of a pixel
    i32 flip;        // whether output x counts from the right
    i32 reserved;
    i64 origin, step_y, step_x, step_c;
};

struct ResizeArgs {
    const Item* items;
    void* out;
    i16* table;
    void* scratch;
    const f32* scale;
    const f32* bias;
    i64 out_stride;
    i64 rows;
    i64 table_count;
    i32 width;
    i32 height;
    i32 channels;
    i32 taps_x;
    i32 taps_y;
    i32 affine;
    i32 ring;  // host only: rows that are kept between the passes, a power of two
    i32 reserved;
};

namespace {

constexpr int kHalf = 1 << 20;
constexpr int kBits = 21;

constexpr int kHead = 4;  // elements of an entry before its weights

HX_FN i32 first_of(const i16* entry) { return (u16)entry[0] | entry[1] * 65536; }
HX_FN i32 count_of(const i16* entry) { return (u16)entry[2]; }

// Fills one entry of a table; weights that are not used are 0.
HX_FN void weigh(i16* entry, int taps, i64 x, i64 n, i64 b, i64 l) {
    const i64 centre = 2 * n * b + (2 * x + 1) * l;
    const i64 support = 2 * l > 16 * n ? 2 * l : 16 * n;
    const i64 low = b / 8, high = (b + l + 7) / 8;
    // the pixels whose distance is below the support: centre - support < 8 n (2 i + 1) < centre + support
    i64 first = (centre - support - 8 * n) / (16 * n) + (centre - support - 8 * n >= 0 ? 1 : 0);
    i64 end = (centre + support - 8 * n + 16 * n - 1) / (16 * n);
    first = first < low ? low : first;
    end = end > high ? high : end;
    end = end > first + taps ? first + taps : end;
    i64 total = 0;
    for (i64 i = first; i < end; ++i) {
        const i64 d = 8 * n * (2 * i + 1) - centre;
        total += support - (d < 0 ? -d : d);
    }
    entry[0] = (i16)first;
    entry[1] = (i16)(first >> 16);
    entry[2] = (i16)(end - first);
    entry[3] = 0;
    i64 sum = 0, before = 0;
    for (i64 i = first; i < end; ++i) {
        const i64 d = 8 * n * (2 * i + 1) - centre;
        sum += support - (d < 0 ? -d : d);
        const i64 now = (16384 * sum + total / 2) / total;
        entry[kHead + (i - first)] = (i16)(now - before);
        before = now;
    }
    for (i64 k = end - first; k < taps; ++k) entry[kHead + k] = 0;
}

HX_FN i64 entry_x(const ResizeArgs& a, i64 x) { return x * (a.taps_x + kHead); }
HX_FN i64 entry_y(const ResizeArgs& a, i64 y) { return a.width * (i64)(a.taps_x + kHead) + y * (a.taps_y + kHead); }

HX_FN void table_of(const ResizeArgs& a, i64 row, int begin, int count) {
    const Item& item = a.items[row];
    i16* table = a.table + row * a.table_count;
    HX_FOR(k, count) {
        const int e = begin + k;
        if (e < a.width) {
            const int x = item.flip ? a.width - 1 - e : e;
            weigh(table + entry_x(a, e), a.taps_x, x, a.width, item.box[0], item.box[2]);
        } else {
            weigh(table + entry_y(a, e - a.width), a.taps_y, e - a.width, a.height, item.box[1], item.box[3]);
        }
    }
}

template <class Out>
HX_FN Out finish(const ResizeArgs& a, i32 v, int c) {
    return from_f32<Out>((f32)v * a.scale[c] + a.bias[c]);
}

template <class Out>
HX_FN Out emit(const ResizeArgs& a, i32 v, int c) {
    return finish<Out>(a, v, c);
}

template <>
HX_FN u8 emit<u8>(const ResizeArgs& a, i32 v, int c) {
    return a.affine ? finish<u8>(a, v, c) : (u8)((v + kHalf) >> kBits);
}

// One element after the other: what a thread of the device does.
template <class Out>
HX_FN void direct(const ResizeArgs& a) {
    const int span = a.width * a.channels;
    HX_BLOCKS(row, a.rows, tile, a.height * ceil_div(span, HX_THREADS)) {
        const Item& item = a.items[row];
        const i16* table = a.table + row * a.table_count;
        const int y = (int)(tile / ceil_div(span, HX_THREADS));
        const int begin = (int)(tile % ceil_div(span, HX_THREADS)) * HX_THREADS;
        Out* out = at<Out>(a.out, row * a.out_stride) + item.origin + y * item.step_y;
        const i16* down = table + entry_y(a, y);
        HX_FOR(k, least(HX_THREADS, span - begin)) {
            const int x = (begin + k) / a.channels, c = (begin + k) % a.channels;
            const i16* across = table + entry_x(a, x);
            i32 v = 0;
            for (int j = 0; j < count_of(down); ++j) {
                const u8* in = item.in + (first_of(down) + j) * item.in_stride + (i64)first_of(across) * item.pixel + c;
                i32 h = 64;
                for (int i = 0; i < count_of(across); ++i) h += across[kHead + i] * in[i * item.pixel];
                v += down[kHead + j] * (h >> 7);
            }
            out[x * item.step_x + c * item.step_c] = emit<Out>(a, v, c);
        }
    }
}

#ifndef __CUDACC__

// The same on the host: rows of the picture go through the first pass once, four at a time, into a ring of rows that
// the second pass reads while they are in the nearest cache.

constexpr int kGroup = 4;  // rows that go through the first pass together

#if defined(__AVX2__)

constexpr bool kVector = true;

// Four pixels of a row, 4 bytes each, of 3 or 4 bytes in memory. Reads 16 bytes.
template <int Pixel>
HX_FN __m128i four(const u8* in) {
    const __m128i bytes = _mm_loadu_si128((const __m128i*)in);
    const __m128i spread = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    return Pixel == 3 ? _mm_shuffle_epi8(bytes, spread) : bytes;
}

// Four rows side by side: pixel x of all four in 16 bytes.
template <int Pixel>
HX_FN void gather(const u8* const* in, u8* tile, int count) {
    int x = 0;
    for (; Pixel * x + 16 <= Pixel * count; x += 4) {
        __m128i r[4];
        for (int k = 0; k < 4; ++k) r[k] = four<Pixel>(in[k] + Pixel * x);
        const __m128i a = _mm_unpacklo_epi32(r[0], r[1]), b = _mm_unpacklo_epi32(r[2], r[3]);
        const __m128i c = _mm_unpackhi_epi32(r[0], r[1]), d = _mm_unpackhi_epi32(r[2], r[3]);
        __m128i* to = (__m128i*)(tile + 16 * x);
        _mm_store_si128(to, _mm_unpacklo_epi64(a, b));
        _mm_store_si128(to + 1, _mm_unpackhi_epi64(a, b));
        _mm_store_si128(to + 2, _mm_unpacklo_epi64(c, d));
        _mm_store_si128(to + 3, _mm_unpackhi_epi64(c, d));
    }
    for (; x < count; ++x)
        for (int k = 0; k < 4; ++k) __builtin_memcpy(tile + 16 * x + 4 * k, in[k] + Pixel * x, 3);
}

HX_FN __m256i wide(const u8* tile) { return _mm256_cvtepu8_epi16(_mm_load_si128((const __m128i*)tile)); }

HX_FN __m256i two(const i16* weights) {
    i32 both;
    __builtin_memcpy(&both, weights, 4);
    return _mm256_set1_epi32(both);
}

// sum of weight * element, for two elements at a time: even has elements 0 to 3 and 8 to 11, odd the others.
HX_FN void add(__m256i& even, __m256i& odd, __m256i p, __m256i q, __m256i w) {
    even = _mm256_add_epi32(even, _mm256_madd_epi16(_mm256_unpacklo_epi16(p, q), w));
    odd = _mm256_add_epi32(odd, _mm256_madd_epi16(_mm256_unpackhi_epi16(p, q), w));
}

// The first pass over such a tile, `Pairs` pairs of pixels for each output, or `pairs` if that is 0: the same for all,
// so that no branch has to be guessed. Rows of `out` have an element more than they need: pixels are stored by fours.
template <int Pairs>
HX_FN void across4(const ResizeArgs& a, const i16* table, const u8* tile, int low, i16* const* out, int pairs) {
    const __m256i half = _mm256_set1_epi32(64);
    const int stride = a.taps_x + kHead;
    for (int x = 0; x < a.width; ++x) {
        const i16* entry = table + x * stride;
        const u8* from = tile + 16 * (first_of(entry) - low);
        __m256i even = half, odd = half;
        for (int i = 0; i < (Pairs ? Pairs : pairs); ++i)
            add(even, odd, wide(from + 32 * i), wide(from + 32 * i + 16), two(entry + kHead + 2 * i));
        const __m256i h = _mm256_packs_epi32(_mm256_srai_epi32(even, 7), _mm256_srai_epi32(odd, 7));
        const __m128i lower = _mm256_castsi256_si128(h), upper = _mm256_extracti128_si256(h, 1);
        _mm_storel_epi64((__m128i*)(out[0] + 3 * x), lower);
        _mm_storel_epi64((__m128i*)(out[1] + 3 * x), _mm_unpackhi_epi64(lower, lower));
        _mm_storel_epi64((__m128i*)(out[2] + 3 * x), upper);
        _mm_storel_epi64((__m128i*)(out[3] + 3 * x), _mm_unpackhi_epi64(upper, upper));
    }
}

template <int Pairs>
HX_FN int down_pairs(const i16* const* in, const i16* weights, int pairs, int n, i32* out, u8* bytes) {
    const __m256i half = _mm256_set1_epi32(kHalf);
    int e = 0;
    for (; e + 16 <= n; e += 16) {
        __m256i even = _mm256_setzero_si256(), odd = even;
        for (int j = 0; j < (Pairs ? Pairs : pairs); ++j)
            add(even, odd, _mm256_loadu_si256((const __m256i*)(in[2 * j] + e)),
                _mm256_loadu_si256((const __m256i*)(in[2 * j + 1] + e)), two(weights + 2 * j));
        if (bytes) {
            even = _mm256_srai_epi32(_mm256_add_epi32(even, half), kBits);
            odd = _mm256_srai_epi32(_mm256_add_epi32(odd, half), kBits);
            const __m256i words = _mm256_packs_epi32(even, odd);
            _mm_storeu_si128((__m128i*)(bytes + e), _mm_packus_epi16(_mm256_castsi256_si128(words),
                                                                     _mm256_extracti128_si256(words, 1)));
        } else {
            _mm256_storeu_si256((__m256i*)(out + e), _mm256_permute2x128_si256(even, odd, 0x20));
            _mm256_storeu_si256((__m256i*)(out + e + 8), _mm256_permute2x128_si256(even, odd, 0x31));
        }
    }
    return e;
}

// Rows count .. count rounded up to even are read too, with weight 0.
HX_FN int down_vector(const i16* const* in, const i16* weights, int count, int n, i32* out, u8* bytes) {
    const int pairs = (count + 1) / 2;
    switch (pairs) {
        case 1:
            return down_pairs<1>(in, weights, pairs, n, out, bytes);
        case 2:
            return down_pairs<2>(in, weights, pairs, n, out, bytes);
        default:
            return down_pairs<0>(in, weights, pairs, n, out, bytes);
    }
}

HX_FN void across_vector(const ResizeArgs& a, const i16* table, const Item& item, const u8* const* in, u8* tile, int low,
                         int columns, i16* const* to, int pairs) {
    item.pixel == 3 ? gather<3>(in, tile, columns) : gather<4>(in, tile, columns);
    switch (pairs) {
        case 1:
            return across4<1>(a, table, tile, low, to, pairs);
        case 2:
            return across4<2>(a, table, tile, low, to, pairs);
        case 3:
            return across4<3>(a, table, tile, low, to, pairs);
        default:
            return across4<0>(a, table, tile, low, to, pairs);
    }
}
#else
constexpr bool kVector = false;

HX_FN int down_vector(const i16* const*, const i16*, int, int, i32*, u8*) { return 0; }

HX_FN void across_vector(const ResizeArgs&, const i16*, const Item&, const u8* const*, u8*, int, int, i16* const*, int) {}
#endif

// The first pass over one row, for any number of channels.
HX_FN void across1(const ResizeArgs& a, const i16* table, const Item& item, const u8* in, i16* out) {
    for (int x = 0; x < a.width; ++x) {
        const i16* entry = table + entry_x(a, x);
        for (int c = 0; c < a.channels; ++c) {
            const u8* from = in + (i64)first_of(entry) * item.pixel + c;
            i32 h = 64;
            for (int i = 0; i < count_of(entry); ++i) h += entry[kHead + i] * from[i * item.pixel];
            out[x * a.channels + c] = (i16)(h >> 7);
        }
    }
}

// The second pass for one row of the output: `bytes` receives plain u8, or else `out` the sums.
HX_FN void down(const i16* const* in, const i16* weights, int count, int n, i32* out, u8* bytes) {
    const int begin = down_vector(in, weights, count, n, out, bytes);
    if (begin == n) return;
    for (int e = begin; e < n; ++e) out[e] = 0;
    for (int j = 0; j < count; ++j) {
        const i16* from = in[j];
        const i32 w = weights[j];
        for (int e = begin; e < n; ++e) out[e] += w * from[e];
    }
    if (bytes)
        for (int e = begin; e < n; ++e) bytes[e] = (u8)((out[e] + kHalf) >> kBits);
}

template <class Out>
HX_FN void place(const ResizeArgs& a, const Item& item, const i32* sums, Out* out) {
    const int n = a.width, channels = a.channels;
    if (item.step_c == 1 && item.step_x == channels) {
        for (int x = 0; x < n; ++x)
            for (int c = 0; c < channels; ++c) out[x * channels + c] = emit<Out>(a, sums[x * channels + c], c);
        return;
    }
    for (int c = 0; c < channels; ++c)
        for (int x = 0; x < n; ++x) out[x * item.step_x + c * item.step_c] = emit<Out>(a, sums[x * channels + c], c);
}

template <class Out>
struct IsBytes {
    static constexpr bool value = false;
};
template <>
struct IsBytes<u8> {
    static constexpr bool value = true;
};

template <class Out>
HX_FN void passes(const ResizeArgs& a) {
    const int span = a.width * a.channels;
    const i64 ring_row = (span + 16 + 31) / 32 * 32;
    i16* ring = (i16*)a.scratch;
    i32* sums = (i32*)(ring + a.ring * ring_row);
    u8* bytes = (u8*)(sums + ring_row);
    const i16** rows = (const i16**)(bytes + 2 * ring_row);
    u8* tile = (u8*)(rows + (a.ring + 8) / 4 * 4);
    for (i64 row = 0; row < a.rows; ++row) {
        const Item& item = a.items[row];
        const i16* table = a.table + row * a.table_count;
        table_of(a, row, 0, a.width + a.height);
        const int low = item.box[0] / 8, columns = (item.box[0] + item.box[2] + 7) / 8 - low;
        const int bottom = (item.box[1] + item.box[3] + 7) / 8;
        int done = item.box[1] / 8;  // rows of the picture that went through the first pass
        int most = 0;
        for (int x = 0; x < a.width; ++x) {
            const int count = count_of(table + entry_x(a, x));
            most = count > most ? count : most;
        }
        for (int y = 0; y < a.height; ++y) {
            const i16* entry = table + entry_y(a, y);
            const int first = first_of(entry), count = count_of(entry), end = first + count;
            if (done < first) done = first;
            while (done < end) {
                if (kVector && a.channels == 3) {
                    const u8* in[kGroup];
                    i16* to[kGroup];
                    const int left = bottom - done;
                    for (int k = 0; k < kGroup; ++k) {
                        const int each = done + (k < left ? k : left - 1);
                        in[k] = item.in + each * item.in_stride + (i64)item.pixel * low;
                        to[k] = ring + ((done + k) & (a.ring - 1)) * ring_row;
                    }
                    across_vector(a, table, item, in, tile, low, columns, to, (most + 1) / 2);
                    done += kGroup;
                    continue;
                }
                across1(a, table, item, item.in + done * item.in_stride, ring + (done & (a.ring - 1)) * ring_row);
                ++done;
            }
            for (int j = 0; j < count; ++j) rows[j] = ring + ((first + j) & (a.ring - 1)) * ring_row;
            rows[count] = rows[count - 1];
            Out* out = at<Out>(a.out, row * a.out_stride) + item.origin + y * item.step_y;
            if (IsBytes<Out>::value && !a.affine) {
                const bool straight = item.step_c == 1 && item.step_x == a.channels;
                u8* line = straight ? (u8*)out : bytes;
                down(rows, entry + kHead, count, span, sums, line);
                if (!straight)
                    for (int c = 0; c < a.channels; ++c)
                        for (int x = 0; x < a.width; ++x)
                            ((u8*)out)[x * item.step_x + c * item.step_c] = line[x * a.channels + c];
            } else {
                down(rows, entry + kHead, count, span, sums, nullptr);
                place<Out>(a, item, sums, out);
            }
        }
    }
}

#endif

}  // namespace

HX_KERNEL(resize_table, ResizeArgs) {
    const int count = args.width + args.height;
    HX_BLOCKS(row, args.rows, tile, ceil_div(count, HX_THREADS)) {
        const int begin = (int)tile * HX_THREADS;
        table_of(args, row, begin, least(HX_THREADS, count - begin));
    }
}

#define DIRECT(Out) \
    HX_KERNEL(resize_direct_##Out, ResizeArgs) { direct<Out>(args); }
DIRECT(u8)
DIRECT(f16)
DIRECT(bf16)
DIRECT(f32)

#ifndef __CUDACC__
#define PASSES(Out) \
    HX_KERNEL(resize_##Out, ResizeArgs) { passes<Out>(args); }
PASSES(u8)
PASSES(f16)
PASSES(bf16)
PASSES(f32)
#endif
