// Philox4x32-10 for one counter, since a loader draws for one picture at a time: J. K. Salmon, M. A. Moraes, R. O. Dror,
// D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The twin is hydrax_gpu._decode.draws.words.
#include <cstdint>

// `words` holds the counter, least significant word first, and receives the random words.
extern "C" __attribute__((visibility("default"))) void hx_philox(uint64_t key, uint32_t* words) {
    uint32_t a = words[0], b = words[1], c = words[2], d = words[3];
    uint32_t k = (uint32_t)key, l = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p = (uint64_t)a * 0xD2511F53u, q = (uint64_t)c * 0xCD9E8D57u;
        a = (uint32_t)(q >> 32) ^ b ^ k;
        b = (uint32_t)q;
        c = (uint32_t)(p >> 32) ^ d ^ l;
        d = (uint32_t)p;
        k += 0x9E3779B9u;
        l += 0xBB67AE85u;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}
