// Records of a cache's file into memory, each checked while it is still in the processor's cache: what
// hydrax_gpu._cache.reading does for one file, in one call, and the looking up before it in another. Which bytes are
// read by which call is decided as in hydrax_gpu._cache.planner; what is checked with is XXH3 as the package xxhash has
// it, whose function is passed in. The Python modules do the same without this library, and tests compare the two.
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

using Hash = uint64_t (*)(const void* data, size_t size, uint64_t seed);

constexpr int kPieces = 1024;          // buffers of one call
constexpr int64_t kWaste = 16 * 1024;  // bytes between two records that may be read along

enum Verdict : int64_t { kGood = 0, kWrong = 1, kShort = 2 };

// Columns of the table, one after the other, each with an element a record; see hydrax_gpu._cache.bulk.
struct Table {
    int64_t *offset, *size, *target;
    uint64_t *sum, *seed;
    int64_t *order, *verdict;

    Table(int64_t* words, int64_t n)
        : offset(words), size(words + n), target(words + 2 * n), sum((uint64_t*)words + 3 * n),
          seed((uint64_t*)words + 4 * n), order(words + 5 * n), verdict(words + 6 * n) {}
};

// Words of a row of the table of entries, in which the key's word is the writer's number; hydrax_gpu._cache.journal.
enum Row { kHead = 0, kKey = 1, kSlot = 2, kSums = 5 };

constexpr int kItemBits = 40, kPassBits = 23;  // of a key; hydrax_gpu._cache.keys

// hydrax_gpu._cache.checksums.seeds
uint64_t seed_of(int64_t key, uint64_t what) {
    uint64_t mixed = (((uint64_t)key + what + 1) * 0x9E3779B97F4A7C15u) ^ what;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBu;
    return mixed ^ mixed >> 31;
}

// A sorted run of keys and their values; hydrax_gpu._cache.index.
struct Keys {
    const int64_t* keys;
    const int64_t* values;
    int64_t count;

    int64_t find(int64_t key) const {
        if (!count || key < keys[0] || key > keys[count - 1]) return -1;
        if (keys[count - 1] - keys[0] == count - 1) return values[key - keys[0]];  // without gaps
        const int64_t* at = std::lower_bound(keys, keys + count, key);
        return *at == key ? values[at - keys] : -1;
    }
};

// One read, as far as it is planned.
struct Run {
    int64_t start = 0, end = 0;
    int64_t first = 0, past = 0;  // the records, by their place in the order
    int pieces = 0;
    iovec piece[kPieces];
};

// A file that is read. As long as everything is in the page cache, nothing is waited for, nor asked for ahead.
// At the first byte that is not, all that is still to be read is asked for at once, so that the disk has it all to do.
struct File {
    int fd;
    const Table& table;
    int64_t count, gap;
    bool waits = false;

    void ask(int64_t from) const {
        int64_t start = 0, end = -1;
        for (int64_t i = from; i < count; ++i) {
            const int64_t record = table.order[i], offset = table.offset[record], size = table.size[record];
            if (end >= 0 && offset - end <= gap) {
                end = std::max(end, offset + size);
                continue;
            }
            if (end > start) posix_fadvise(fd, start, end - start, POSIX_FADV_WILLNEED);
            start = offset, end = offset + size;
        }
        if (end > start) posix_fadvise(fd, start, end - start, POSIX_FADV_WILLNEED);
    }

    // Fills the pieces of a run; the bytes that were there, or an error of the operating system, negative.
    int64_t fill(Run& run) {
        iovec* piece = run.piece;
        int pieces = run.pieces;
        const int64_t total = run.end - run.start;
        int64_t done = 0;
        while (done < total) {
#ifdef RWF_NOWAIT
            const ssize_t got = preadv2(fd, piece, pieces, run.start + done, waits ? 0 : RWF_NOWAIT);
#else
            waits = true;
            const ssize_t got = preadv(fd, piece, pieces, run.start + done);
#endif
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0 && !waits) {  // it is on the disk, or the file ends, or nobody can tell
                waits = true;
                ask(run.first);
                continue;
            }
            if (got < 0) return -errno;
            if (got == 0) break;
            done += got;
            int64_t left = got;
            while (pieces && left >= (int64_t)piece->iov_len) left -= piece->iov_len, ++piece, --pieces;
            if (pieces) piece->iov_base = (char*)piece->iov_base + left, piece->iov_len -= left;
        }
        return done;
    }
};

// Whether records of one size lie behind one another in the file as well as in memory, in the order they are given in.
bool straight(const Table& t, int64_t count) {
    const int64_t size = count ? t.size[0] : 0;
    for (int64_t i = 1; i < count; ++i)
        if (t.size[i] != size || t.offset[i] - t.offset[i - 1] != size || t.target[i] - t.target[i - 1] != size)
            return false;
    return true;
}

}  // namespace

// Reads and checks `count` records. Returns 0, or the number of the operating system's error that ended it.
//   words   (7, count) words of 64 bits: where in the file each record begins, its bytes, where in `memory` it goes,
//           its checksum and that one's seed; room for the order of the records; and what became of each, which is set
//   gap     bytes between two records that are read along with them, at most
//   limit   bytes of a read of more than one record, at most; `block` where all of them lie behind one another
//   done    bytes that were read, the calls it took, and the records that are not good
extern "C" __attribute__((visibility("default"))) int hx_cache_read(int fd, Hash hash, unsigned char* memory,
                                                                    int64_t* words, int64_t count, int64_t gap,
                                                                    int64_t limit, int64_t block, int64_t* done) {
    const Table t(words, count);
    done[0] = done[1] = done[2] = 0;
    unsigned char waste[kWaste];
    if (gap > kWaste) gap = kWaste;
    bool ascending = true;
    for (int64_t i = 0; i < count; ++i) {
        t.order[i] = i;
        ascending = ascending && (!i || t.offset[i - 1] <= t.offset[i]);
    }
    if (!ascending)
        std::sort(t.order, t.order + count, [&t](int64_t a, int64_t b) {
            return t.offset[a] != t.offset[b] ? t.offset[a] < t.offset[b] : a < b;
        });
    if (count && t.size[0] <= limit && straight(t, count)) limit = block;
    File file{fd, t, count, gap};
    Run run;
    for (int64_t next = 0; next < count;) {
        run.first = next, run.pieces = 0;
        unsigned char* last = nullptr;  // where the piece at the end ends
        for (; next < count; ++next) {
            const int64_t record = t.order[next], offset = t.offset[record], size = t.size[record];
            if (!size) {
                t.verdict[record] = kGood;
                continue;
            }
            unsigned char* const target = memory + t.target[record];
            if (!run.pieces) {
                run.start = offset;
            } else {
                const int64_t between = offset - run.end;
                if (between < 0 || between > gap || offset + size - run.start > limit || run.pieces >= kPieces - 2)
                    break;
                if (!between && target == last) {
                    run.piece[run.pieces - 1].iov_len += size;
                    last += size, run.end = offset + size;
                    continue;
                }
                if (between) run.piece[run.pieces++] = {waste, (size_t)between};
            }
            run.piece[run.pieces++] = {target, (size_t)size};
            last = target + size, run.end = offset + size;
        }
        run.past = next;
        if (!run.pieces) break;
        const int64_t got = file.fill(run);
        if (got < 0) return (int)-got;
        done[0] += got, ++done[1];
        for (int64_t i = run.first; i < run.past; ++i) {
            const int64_t record = t.order[i], size = t.size[record];
            if (!size) continue;
            if (t.offset[record] + size > run.start + got) {
                t.verdict[record] = kShort;
                ++done[2];
            } else {
                const bool good = hash(memory + t.target[record], size, t.seed[record]) == t.sum[record];
                t.verdict[record] = good ? kGood : kWrong;
                done[2] += !good;
            }
        }
    }
    return 0;
}

// Looks entries up. Returns what is to be known of them, or -1 when a key is out of range:
//   1 some are not there, 2 they are of several writers, 4 some have additional data, 8 some of it is pickled
//   items, passes  the keys; `length` items are in the cache, and with `by_item` no passes
//   runs           (run_count, 3): addresses of keys and values, and their number
//   rows           (…, width): all entries there are
//   keys, places   for each entry its key as one number, and the number of its row, or -1
//   out            (count, width): their rows; nothing where there is none
extern "C" __attribute__((visibility("default"))) int hx_cache_look(const int64_t* items, const int64_t* passes,
                                                                    int64_t count, int64_t length, int by_item,
                                                                    const int64_t* runs, int64_t run_count,
                                                                    const uint64_t* rows, int64_t width, int64_t* keys,
                                                                    int64_t* places, uint64_t* out) {
    int found = 0;
    const uint64_t* first = nullptr;
    for (int64_t i = 0; i < count; ++i) {
        if (items[i] < 0 || items[i] >= length || passes[i] < 0 || passes[i] >> kPassBits || (by_item && passes[i]))
            return -1;
        keys[i] = passes[i] << kItemBits | items[i];
        places[i] = -1;
        for (const int64_t* run = runs; run < runs + 3 * run_count && places[i] < 0; run += 3)
            places[i] = Keys{(const int64_t*)run[0], (const int64_t*)run[1], run[2]}.find(keys[i]);
        if (places[i] < 0) {
            found |= 1;
            continue;
        }
        const uint64_t* const row = rows + places[i] * width;
        std::memcpy(out + i * width, row, width * sizeof *row);
        if (!first) first = row;
        if (row[kKey] != first[kKey]) found |= 2;
        found |= (int)(row[kHead] >> 32 & 3) << 2;
    }
    return found;
}

// `hx_cache_read` of array number `position` of entries of one writer, that are not compressed.
//   rows     (count, width), as `hx_cache_look` leaves them, of entries with these keys
//   into     number of the row of `memory` that each goes to; null for all of them in turn
//   nbytes   bytes of a row
//   words    room for (7, count) words, of which the last `count` are set as there
extern "C" __attribute__((visibility("default"))) int hx_cache_rows(int fd, Hash hash, unsigned char* memory,
                                                                    const uint64_t* rows, int64_t width,
                                                                    const int64_t* keys, const int64_t* into,
                                                                    int64_t count, int64_t position, int64_t nbytes,
                                                                    int64_t gap, int64_t limit, int64_t block,
                                                                    int64_t* words, int64_t* done) {
    const Table t(words, count);
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t* const row = rows + i * width;
        t.offset[i] = (int64_t)row[kSlot] * nbytes;
        t.size[i] = nbytes;
        t.target[i] = (into ? into[i] : i) * nbytes;
        t.sum[i] = row[kSums + position];
        t.seed[i] = seed_of(keys[i], (uint64_t)position);
    }
    return hx_cache_read(fd, hash, memory, words, count, gap, limit, block, done);
}

// Checksums of `count` rows of `size` bytes each: of those whose numbers are in `rows`, with a seed each.
extern "C" __attribute__((visibility("default"))) void hx_cache_sums(Hash hash, const unsigned char* memory,
                                                                     int64_t size, const int64_t* rows, int64_t count,
                                                                     const uint64_t* seeds, uint64_t* sums) {
    for (int64_t i = 0; i < count; ++i) sums[i] = hash(memory + rows[i] * size, size, seeds[i]);
}
