// pad_ragged: sequences of varying length, one after the other, to lines of one length.
//
// A row is an item with `sequences` sequences; sequence i has the values splits[i] .. splits[i + 1]. With `single`, the
// item is one sequence, and splits holds nothing but its length.
//
// Padded (packed = 0): line i holds sequence i. What is longer than a line is cut with `truncate`, an error without.
// Packed (packed = 1): the sequences are put, in their order, each behind what is there already in the first line that
// has room for it (first fit); one that fits nowhere is an error. Empty ones take no part.
//
// Behind the last sequence of a line, out is `pad`, and the other outputs are 0. They may be null:
//
//   values       (rows, capacity, width) elements; rows values_stride bytes apart
//   splits       (rows, sequences + 1) or, with single, (rows,) i32 or i64; rows splits_stride bytes apart
//   out          (rows, lines, length, width) elements; rows out_stride bytes apart
//   mask         (rows, lines, length) u8: 1 for a value; rows mask_stride bytes apart
//   segment_ids  (rows, lines, length) i32: number of the sequence in its line, from 1; rows segment_ids_stride apart
//   positions    (rows, lines, length) i32: place in the sequence, from 0; rows positions_stride bytes apart
//   status       (rows,) i32: 0, or an error with the number of the sequence at fault, 4 * sequence + one of
//                1 the splits do not begin at 0, descend or exceed the capacity, 2 too long for a line, 3 fits no line
//
// There is a kernel for each type of the splits and each size of the elements, pad_ragged_SPLITS_UNSIGNED. A row with an
// error is left half-written. At most kLines lines when packed. Grid: y over rows.
// NumPy twin: hydrax_gpu._kernels.pad_ragged.twin
#include "common.cuh"

struct PadRaggedArgs {
    const void* values;
    const void* splits;
    void* out;
    void* mask;
    void* segment_ids;
    void* positions;
    void* status;
    u64 pad;
    i64 values_stride;
    i64 splits_stride;
    i64 out_stride;
    i64 mask_stride;
    i64 segment_ids_stride;
    i64 positions_stride;
    i64 rows;
    i64 capacity;
    i64 width;
    i64 sequences;
    i64 lines;
    i64 length;
    i32 single;
    i32 packed;
    i32 truncate;
};

namespace {

constexpr int kLines = 2048;

template <class T>
HX_FN void fill(T* out, i64 count, T value) {
    for (i64 begin = 0; begin < count; begin += 1 << 30)
        generate(out + begin, (int)least<i64>(1 << 30, count - begin), [=](int) { return value; });
}

template <class Split, class T>
HX_FN void pad_ragged(const PadRaggedArgs& a) {
    HX_SHARED(i64, used, kLines);   // of each line
    HX_SHARED(i32, count, kLines);  // sequences in it
    HX_BLOCKS(row, a.rows, tile, 1) {
        const T* values = at<T>(a.values, row * a.values_stride);
        const Split* splits = at<Split>(a.splits, row * a.splits_stride);
        T* out = at<T>(a.out, row * a.out_stride);
        u8* mask = a.mask ? at<u8>(a.mask, row * a.mask_stride) : nullptr;
        i32* ids = a.segment_ids ? at<i32>(a.segment_ids, row * a.segment_ids_stride) : nullptr;
        i32* positions = a.positions ? at<i32>(a.positions, row * a.positions_stride) : nullptr;
        const i64 places = a.lines * a.length;
        HX_SYNC();
        fill(out, places * a.width, (T)a.pad);
        if (mask) fill(mask, places, (u8)0);
        if (ids) fill(ids, places, (i32)0);
        if (positions) fill(positions, places, (i32)0);
        if (a.packed) HX_FOR(k, (int)a.lines) used[k] = 0, count[k] = 0;
        HX_SYNC();
        i32 status = 0;
        i64 previous = 0;
        // Every thread walks through all sequences and comes to the same decisions; together they copy each.
        for (i64 i = 0; i < a.sequences && !status; ++i) {
            const i64 begin = a.single ? 0 : (i64)splits[i], end = (i64)splits[a.single ? 0 : i + 1];
            if (begin != previous || end < begin || end > a.capacity) {
                status = (i32)(4 * i + 1);
                break;
            }
            previous = end;
            i64 length = end - begin, line = i, offset = 0;
            i32 id = 1;
            if (a.packed) {
                if (!length) continue;
                for (line = 0; line < a.lines && used[line] + length > a.length; ++line) continue;
                if (line == a.lines) {
                    status = (i32)(4 * i + 3);
                    break;
                }
                offset = used[line];
                id = count[line] + 1;
                HX_SYNC();
                HX_FOR(k, 1) used[line] = offset + length, count[line] = id;
                HX_SYNC();
            } else if (length > a.length) {
                if (!a.truncate) {
                    status = (i32)(4 * i + 2);
                    break;
                }
                length = a.length;
            }
            const i64 place = line * a.length + offset;
            map(values + begin * a.width, out + place * a.width, (int)(length * a.width), [](int, T x) { return x; });
            if (mask) generate(mask + place, (int)length, [](int) { return (u8)1; });
            if (ids) generate(ids + place, (int)length, [=](int) { return id; });
            if (positions) generate(positions + place, (int)length, [](int k) { return (i32)k; });
        }
        HX_FOR(k, 1) static_cast<i32*>(a.status)[row] = status;
    }
}

}  // namespace

#define PAD_RAGGED_(Split, T) \
    HX_KERNEL(pad_ragged_##Split##_##T, PadRaggedArgs) { pad_ragged<Split, T>(args); }
#define PAD_RAGGED(Split, T) PAD_RAGGED_(Split, T)
#define PAD_RAGGED_BY(Split) PAD_RAGGED(Split, u8) PAD_RAGGED(Split, u16) PAD_RAGGED(Split, u32) PAD_RAGGED(Split, u64)

#ifdef HX_IN  // CUDA compiles what is asked for
PAD_RAGGED(HX_IN, HX_OUT)
#else
PAD_RAGGED_BY(i32)
PAD_RAGGED_BY(i64)
#endif
