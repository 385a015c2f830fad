// Records of a cache's file into memory, each checked while it is still in the processor's cache: everything that
// hydrax_gpu._cache.reading does for one file, in one call. Which bytes are read by which call is decided as in
// hydrax_gpu._cache.planner; what is checked with is XXH3 as the package xxhash has it, whose function is passed in.
#include <cerrno>
#include <cstdint>
#include <sys/uio.h>
#include <unistd.h>

namespace {

using Hash = uint64_t (*)(const void* data, size_t size, uint64_t seed);

constexpr int kPieces = 1024;          // buffers of one call
constexpr int64_t kWaste = 16 * 1024;  // bytes between two records that may be read along

enum Verdict : int64_t { kGood = 0, kWrong = 1, kShort = 2 };

// Columns of the table, one after the other, each with an element a record; see hydrax_gpu._cache.bulk.
struct Table {
    const int64_t* offset;
    const int64_t* size;
    const int64_t* target;
    const uint64_t* sum;
    const uint64_t* seed;
    const int64_t* order;
    int64_t* verdict;

    Table(int64_t* words, int64_t n)
        : offset(words), size(words + n), target(words + 2 * n), sum((const uint64_t*)words + 3 * n),
          seed((const uint64_t*)words + 4 * n), order(words + 5 * n), verdict(words + 6 * n) {}
};

// One read, as far as it is planned.
struct Run {
    int64_t start = 0, end = 0;
    int64_t first = 0, past = 0;  // the records, by their place in the order
    int pieces = 0;
    iovec piece[kPieces];
};

// Fills the pieces; the bytes that were there, or an error of the operating system, negative.
int64_t fill(int fd, iovec* piece, int pieces, int64_t offset, int64_t total) {
    int64_t done = 0;
    while (done < total) {
        const ssize_t got = pieces == 1 ? pread(fd, piece->iov_base, piece->iov_len, offset + done)
                                        : preadv(fd, piece, pieces, offset + done);
        if (got < 0) {
            if (errno == EINTR) continue;
            return -errno;
        }
        if (got == 0) break;
        done += got;
        int64_t left = got;
        while (pieces && left >= (int64_t)piece->iov_len) left -= piece->iov_len, ++piece, --pieces;
        if (pieces) piece->iov_base = (char*)piece->iov_base + left, piece->iov_len -= left;
    }
    return done;
}

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
//   words   (7, count) words of 64 bits: where in the file each record begins, its bytes, where in `memory` it goes, its
//           checksum and that one's seed, the records in the order of the file; and what became of each, which is set
//   gap     bytes between two records that are read along with them, at most
//   limit   bytes of a read of more than one record, at most; `block` where all of them lie behind one another
//   done    bytes that were read, and the calls it took: added to
extern "C" __attribute__((visibility("default"))) int hx_cache_read(int fd, Hash hash, unsigned char* memory,
                                                                    int64_t* words, int64_t count, int64_t gap,
                                                                    int64_t limit, int64_t block, int64_t* done) {
    const Table t(words, count);
    unsigned char waste[kWaste];
    if (gap > kWaste) gap = kWaste;
    if (count && t.size[0] <= limit && straight(t, count)) limit = block;
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
        const int64_t got = fill(fd, run.piece, run.pieces, run.start, run.end - run.start);
        if (got < 0) return (int)-got;
        done[0] += got, ++done[1];
        for (int64_t i = run.first; i < run.past; ++i) {
            const int64_t record = t.order[i], size = t.size[record];
            if (!size) continue;
            if (t.offset[record] + size > run.start + got)
                t.verdict[record] = kShort;
            else
                t.verdict[record] = hash(memory + t.target[record], size, t.seed[record]) == t.sum[record] ? kGood : kWrong;
        }
    }
    return 0;
}

// Checksums of `count` rows of `size` bytes each: of those whose numbers are in `rows`, with a seed each.
extern "C" __attribute__((visibility("default"))) void hx_cache_sums(Hash hash, const unsigned char* memory,
                                                                     int64_t size, const int64_t* rows, int64_t count,
                                                                     const uint64_t* seeds, uint64_t* sums) {
    for (int64_t i = 0; i < count; ++i) sums[i] = hash(memory + rows[i] * size, size, seeds[i]);
}
