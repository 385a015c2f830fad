// xxh3: checksums of records where they lie, so that what was read into a device's memory is checked there.
//
// It is XXH3 of 64 bits with a seed, as a cache's files have it, for records of more than 240 bytes (shorter ones are
// hashed in another way). https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
//
// What goes into an accumulator within a block of 1,024 bytes is a sum. So blocks are summed side by side; only what is
// between two blocks, an xor and a product for each of the eight accumulators, is done one after the other.
//
//   in      (rows, nbytes) u8; rows in_stride bytes apart, of any alignment
//   seeds   (rows,) u64
//   sums    (rows,) u64, written
//
// Grid: y over rows. NumPy twin: hydrax_gpu._kernels.xxh3.twin
#include "common.cuh"

struct Xxh3Args {
    const void* in;
    const void* seeds;
    void* sums;
    i64 in_stride;
    i64 rows;
    i64 nbytes;
};

namespace {

constexpr int kLanes = 8;
constexpr int kStripe = 64;    // bytes
constexpr int kStripes = 16;   // of a block
constexpr int kBlock = kStripe * kStripes;
constexpr int kBlocks = HX_THREADS / kLanes;  // that are summed side by side

constexpr u64 kPrime1 = 0x9e3779b185ebca87u, kPrime2 = 0xc2b2ae3d27d4eb4fu, kPrime3 = 0x165667b19e3779f9u,
              kPrime4 = 0x85ebca77c2b2ae63u, kPrime5 = 0x27d4eb2f165667c5u;
constexpr u64 kSmall1 = 0x9e3779b1u, kSmall2 = 0x85ebca77u, kSmall3 = 0xc2b2ae3du;

#ifdef __CUDACC__
#define TABLE __constant__ const  // an array within a function would lie in local memory
#else
#define TABLE constexpr
#endif

// The 192 bytes of the default secret, in words of little-endian order.
TABLE u64 kSecret[24] = {
    0xbe4ba423396cfeb8u, 0x1cad21f72c81017cu, 0xdb979083e96dd4deu, 0x1f67b3b7a4a44072u,
    0x78e5c0cc4ee679cbu, 0x2172ffcc7dd05a82u, 0x8e2443f7744608b8u, 0x4c263a81e69035e0u,
    0xcb00c391bb52283cu, 0xa32e531b8b65d088u, 0x4ef90da297486471u, 0xd8acdea946ef1938u,
    0x3f349ce33f76faa8u, 0x1d4f0bc7c7bbdcf9u, 0x3159b4cd4be0518au, 0x647378d9c97e9fc8u,
    0xc3ebd33483acc5eau, 0xeb6313faffa081c5u, 0x49daf0b751dd0d17u, 0x9e68d429265516d3u,
    0xfca1477d58be162bu, 0xce31d07ad1b8f88fu, 0x280416958f3acb45u, 0x7e404bbbcafbd7afu
};

// `in` may be of any alignment. On CUDA only whole words are read, of which at least one byte is wanted.
HX_FN u64 word_at(const u8* in) {
#ifdef __CUDACC__
    const u64* words = reinterpret_cast<const u64*>((u64)in & ~7ull);
    const int shift = 8 * (int)((u64)in & 7);
    return shift ? words[0] >> shift | words[1] << (64 - shift) : words[0];
#else
    u64 word;
    __builtin_memcpy(&word, in, 8);
    return word;
#endif
}

// A word of the secret that is made for a seed; and eight bytes of it from any of its bytes on.
HX_FN u64 seeded_word(int word, u64 seed) { return kSecret[word] + (word & 1 ? 0 - seed : seed); }

HX_FN u64 seeded_at(int byte, u64 seed) {
    const int word = byte / 8, shift = 8 * (byte % 8);
    const u64 low = seeded_word(word, seed);
    return shift ? low >> shift | seeded_word(word + 1, seed) << (64 - shift) : low;
}

// What a stripe adds to accumulator `lane`.
HX_FN u64 added(const u8* stripe, int lane, u64 secret) {
    const u64 key = word_at(stripe + 8 * lane) ^ secret;
    return word_at(stripe + 8 * (lane ^ 1)) + (key & 0xffffffffu) * (key >> 32);
}

// The two halves of the product of 128 bits, by xor.
HX_FN u64 folded(u64 a, u64 b) {
    const u64 a_low = a & 0xffffffffu, a_high = a >> 32, b_low = b & 0xffffffffu, b_high = b >> 32;
    const u64 cross = a_high * b_low + (a_low * b_low >> 32);
    const u64 other = (cross & 0xffffffffu) + a_low * b_high;
    return (a * b) ^ ((cross >> 32) + (other >> 32) + a_high * b_high);
}

// What the accumulators begin with.
TABLE u64 kBegin[kLanes] = {kSmall3, kPrime1, kPrime2, kPrime3, kPrime4, kSmall2, kPrime5, kSmall1};

HX_FN void xxh3(const Xxh3Args& a) {
    HX_SHARED(u64, secret, 24);  // for the row's seed
    HX_SHARED(u64, partial, kBlocks * kLanes);
    HX_SHARED(u64, total, kLanes);
    const i64 blocks = (a.nbytes - 1) / kBlock;  // whole ones; something is left behind them
    HX_BLOCKS(row, a.rows, tile, 1) {
        const u8* in = at<u8>(a.in, row * a.in_stride);
        const u64 seed = static_cast<const u64*>(a.seeds)[row];
        HX_SYNC();
        HX_FOR(word, 24) secret[word] = seeded_word(word, seed);
        HX_FOR(lane, kLanes) total[lane] = kBegin[lane];
        for (i64 first = 0; first < blocks; first += kBlocks) {
            const int n = (int)least<i64>(kBlocks, blocks - first);
            HX_SYNC();
            HX_FOR(k, n * kLanes) {
                const u8* block = in + (first + k / kLanes) * kBlock;
                u64 sum = 0;
                for (int stripe = 0; stripe < kStripes; ++stripe)
                    sum += added(block + stripe * kStripe, k % kLanes, secret[stripe + k % kLanes]);
                partial[k] = sum;
            }
            HX_SYNC();
            HX_FOR(lane, kLanes) {
                u64 state = total[lane];
                for (int block = 0; block < n; ++block) {
                    state += partial[block * kLanes + lane];
                    state = (state ^ state >> 47 ^ secret[kStripes + lane]) * kSmall1;
                }
                total[lane] = state;
            }
        }
        HX_SYNC();
        HX_FOR(lane, kLanes) {
            const u8* rest = in + blocks * kBlock;
            const int stripes = (int)((a.nbytes - 1 - blocks * kBlock) / kStripe);
            u64 state = total[lane];
            for (int stripe = 0; stripe < stripes; ++stripe)
                state += added(rest + stripe * kStripe, lane, secret[stripe + lane]);
            // the last stripe ends where the record does, and may lie over the one before it
            state += added(in + a.nbytes - kStripe, lane, seeded_at(192 - kStripe - 7 + 8 * lane, seed));
            total[lane] = state;
        }
        HX_SYNC();
        HX_FOR(k, 1) {
            u64 sum = (u64)a.nbytes * kPrime1;
            for (int pair = 0; pair < kLanes / 2; ++pair)
                sum += folded(total[2 * pair] ^ seeded_at(11 + 16 * pair, seed),
                              total[2 * pair + 1] ^ seeded_at(19 + 16 * pair, seed));
            sum = (sum ^ sum >> 37) * 0x165667919e3779f9u;
            static_cast<u64*>(a.sums)[row] = sum ^ sum >> 32;
        }
    }
}

}  // namespace

HX_KERNEL(xxh3_64, Xxh3Args) { xxh3(args); }
