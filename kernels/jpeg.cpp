// A JPEG reader on top of whichever libjpeg-turbo is found at run time: only the rows and columns that are asked for
// are decoded, into the caller's buffer, and every complaint of the library is an error.
//
// Pillow's wheels and most systems bring a shared libjpeg-turbo, but no header for it. What is needed of its interface
// is little: the functions below, and the places of a few fields in two structures. On 64-bit platforms those places
// are the same in the two binary interfaces that libjpeg-turbo is built for (6.2 and 8). The library itself checks that
// version and size of the structure are what it was built with, and hydrax_gpu._decode.turbo decodes a picture with
// known pixels before the reader is used for anything.
//
// One reader is one decompressor, for one thread at a time. Nothing here owns memory but the reader itself and what
// libjpeg-turbo allocates for a picture, which is let go of when the picture is done.
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

namespace {

static_assert(sizeof(void*) == 8 && sizeof(long) == 8, "the places of the fields below are those of LP64 platforms");

// Places in bytes of what is read or set in the decompressor's structure ...
enum : int {
    kErr = 0,
    kImageWidth = 48,
    kImageHeight = 52,
    kOutColorSpace = 64,
    kScaleNum = 68,
    kScaleDenom = 72,
    kOutputWidth = 136,
    kOutputHeight = 140,
    kOutputComponents = 148,
    kOutputScanline = 168,
};
// ... and in that of the error handler.
enum : int { kErrorExit = 0, kEmitMessage = 8, kOutputMessage = 16, kFormatMessage = 24 };

constexpr int kMessage = 200;  // bytes that format_message may write
constexpr int kRows = 16;      // rows that are asked for at once: no component has more in a row of blocks

using Rows = unsigned char**;

struct Library {
    void* (*std_error)(void*);
    void (*create)(void*, int, size_t);
    void (*destroy)(void*);
    void (*mem_src)(void*, const unsigned char*, unsigned long);
    int (*read_header)(void*, int);
    int (*start)(void*);
    void (*crop)(void*, unsigned*, unsigned*);
    unsigned (*skip)(void*, unsigned);
    unsigned (*read)(void*, Rows, unsigned);
    void (*abort)(void*);
    int version = 0;
    size_t size = 0;
};

Library library;

struct Reader {
    alignas(16) unsigned char info[1024];
    alignas(16) unsigned char handler[512];
    jmp_buf escape;
    char message[kMessage + 56];
    int warned;

    template <class T>
    T& field(int place) {
        return *reinterpret_cast<T*>(info + place);
    }
};

Reader* reader_of(void* info) { return reinterpret_cast<Reader*>(info); }  // info is its first member

void keep_message(void* info) {
    Reader* reader = reader_of(info);
    using Format = void (*)(void*, char*);
    (*reinterpret_cast<Format*>(reader->handler + kFormatMessage))(info, reader->message);
    reader->message[kMessage] = 0;
}

[[noreturn]] void on_error(void* info) {
    keep_message(info);
    longjmp(reader_of(info)->escape, 1);
}

// Warnings have level -1. Those that do not touch the pixels: padding before a marker, a JFIF version or an Adobe
// transform that is not known, spectral parameters of a sequential scan (which are not used).
bool is_harmless(const char* text) {
    return strstr(text, "extraneous bytes") || strstr(text, "JFIF") || strstr(text, "Adobe") || strstr(text, "SOS param");
}

void on_message(void* info, int level) {
    Reader* reader = reader_of(info);
    if (level >= 0) return;
    keep_message(info);
    if (is_harmless(reader->message)) return;
    reader->warned = 1;
    longjmp(reader->escape, 1);
}

void on_output(void*) {}

// Complaints about what this library was not made for, and another may be.
bool is_unknown(const char* text) {
    return strstr(text, "nsupported") || strstr(text, "not supported") || strstr(text, "precision") ||
           strstr(text, "arithmetic");
}

int big16(const unsigned char* p) { return p[0] << 8 | p[1]; }

// The orientation in a TIFF header, as EXIF has it: tag 0x0112 of the first directory, a SHORT.
int orientation(const unsigned char* tiff, long size) {
    const bool little = tiff[0] == 'I' && tiff[1] == 'I';
    if (!little && !(tiff[0] == 'M' && tiff[1] == 'M')) return 1;
    const auto u16 = [&](long k) { return little ? tiff[k] | tiff[k + 1] << 8 : tiff[k] << 8 | tiff[k + 1]; };
    const long first = little ? u16(4) | long(u16(6)) << 16 : long(u16(4)) << 16 | u16(6);
    if (u16(2) != 42 || first < 8 || first + 2 > size) return 1;
    const int count = u16(first);
    for (int k = 0; k < count; ++k) {
        const long entry = first + 2 + 12L * k;
        if (entry + 12 > size) return 1;
        if (u16(entry) == 0x0112) {
            const int value = u16(entry + 8);
            return u16(entry + 2) == 3 && value >= 1 && value <= 8 ? value : 1;
        }
    }
    return 1;
}

bool make(Reader* reader, int version, size_t size) {
    void* handler = library.std_error(reader->handler);
    *reinterpret_cast<void (**)(void*)>(reader->handler + kErrorExit) = on_error;
    *reinterpret_cast<void (**)(void*, int)>(reader->handler + kEmitMessage) = on_message;
    *reinterpret_cast<void (**)(void*)>(reader->handler + kOutputMessage) = on_output;
    reader->field<void*>(kErr) = handler;
    if (setjmp(reader->escape)) return false;
    library.create(reader->info, version, size);
    return true;
}

template <class F>
bool find(void* handle, const char* name, F& function) {
    return (function = reinterpret_cast<F>(dlsym(handle, name)));
}

}  // namespace

#define HX_API extern "C" __attribute__((visibility("default")))

// Loads libjpeg-turbo from `path`. 0: done. 1: not a library. 2: a function is missing, so it is another libjpeg.
// 3: neither of the two known binary interfaces.
HX_API int hx_jpeg_load(const char* path) {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return 1;
    const bool all = find(handle, "jpeg_std_error", library.std_error) &&
                     find(handle, "jpeg_CreateDecompress", library.create) &&
                     find(handle, "jpeg_destroy_decompress", library.destroy) &&
                     find(handle, "jpeg_mem_src", library.mem_src) &&
                     find(handle, "jpeg_read_header", library.read_header) &&
                     find(handle, "jpeg_start_decompress", library.start) &&
                     find(handle, "jpeg_crop_scanline", library.crop) &&
                     find(handle, "jpeg_skip_scanlines", library.skip) &&
                     find(handle, "jpeg_read_scanlines", library.read) &&
                     find(handle, "jpeg_abort_decompress", library.abort);
    if (!all) return 2;
    const struct {
        int version;
        size_t size;
    } interfaces[] = {{62, 632}, {80, 656}};
    for (auto each : interfaces) {
        Reader* reader = static_cast<Reader*>(calloc(1, sizeof(Reader)));
        if (!reader) return 1;
        const bool fits = make(reader, each.version, each.size);
        if (fits) {
            library.destroy(reader->info);
            library.version = each.version;
            library.size = each.size;
        }
        free(reader);
        if (fits) return 0;
    }
    return 3;
}

HX_API void* hx_jpeg_new() {
    if (!library.size) return nullptr;
    Reader* reader = static_cast<Reader*>(aligned_alloc(64, (sizeof(Reader) + 63) / 64 * 64));
    if (!reader) return nullptr;
    memset(reader, 0, sizeof(Reader));
    if (make(reader, library.version, library.size)) return reader;
    free(reader);
    return nullptr;
}

HX_API void hx_jpeg_free(Reader* reader) {
    if (!setjmp(reader->escape)) library.destroy(reader->info);
    free(reader);
}

HX_API const char* hx_jpeg_message(Reader* reader) { return reader->message; }

// Decodes rows and columns of the JPEG picture in `size` bytes at `data`, reduced by eighths.
//
//   eighths   the picture is decoded at this many eighths of its size, 1 to 8
//   color     1 gray, 2 RGB, 7 RGB and a byte that says nothing: as the library counts them
//   box       x, y, width, height in the reduced picture; x and width may be widened: then `box` says to what
//   expected  width and height that the picture must have
//   out       receives `box` rows of `stride` bytes; `capacity` bytes in all
//
// Returns 0; 1 with a message: the picture is damaged; 2 with a message: this library does not know how to read it;
// 3: the box does not fit the picture, or the result the buffer.
HX_API int hx_jpeg_decode(Reader* reader, const unsigned char* data, unsigned long size, int eighths, int color, int* box,
                          const int* expected, unsigned char* out, long stride, long capacity) {
    reader->message[0] = 0;
    if (setjmp(reader->escape)) {
        library.abort(reader->info);
        return reader->warned ? 1 : is_unknown(reader->message) ? 2 : 1;
    }
    reader->warned = 0;
    library.mem_src(reader->info, data, size);
    library.read_header(reader->info, 1);
    if (reader->field<int>(kImageWidth) != expected[0] || reader->field<int>(kImageHeight) != expected[1]) {
        library.abort(reader->info);
        return 3;
    }
    reader->field<int>(kOutColorSpace) = color;
    reader->field<int>(kScaleNum) = eighths;
    reader->field<int>(kScaleDenom) = 8;
    library.start(reader->info);
    const unsigned full_width = reader->field<unsigned>(kOutputWidth), height = reader->field<unsigned>(kOutputHeight);
    const unsigned y = box[1], rows = box[3];
    unsigned x = box[0], width = box[2];
    bool fits = box[0] >= 0 && box[1] >= 0 && box[2] > 0 && box[3] > 0 && x + width <= full_width && y + rows <= height;
    if (fits && width < full_width) library.crop(reader->info, &x, &width);
    const long row_bytes = long(width) * reader->field<int>(kOutputComponents);
    fits = fits && row_bytes <= stride && long(rows) * stride <= capacity;
    if (!fits) {
        library.abort(reader->info);
        return 3;
    }
    box[0] = x;
    box[2] = width;
    if (y) library.skip(reader->info, y);
    unsigned char* pointers[kRows];
    while (reader->field<unsigned>(kOutputScanline) < y + rows) {
        const unsigned done = reader->field<unsigned>(kOutputScanline) - y;
        const unsigned count = rows - done < kRows ? rows - done : kRows;
        for (unsigned k = 0; k < count; ++k) pointers[k] = out + long(done + k) * stride;
        library.read(reader->info, pointers, count);
    }
    library.abort(reader->info);
    return 0;
}

// What a JPEG file says of itself before its first scan. `found` receives width, height, components, bits of a sample,
// the number of the frame header (0xC0 baseline, 0xC1 extended, 0xC2 progressive, others are rare), the EXIF
// orientation (1 to 8; 1 when there is none), whether an ICC profile is there, where the first scan begins, whether the
// file has its end marker, and the number of scans, which is only counted in progressive files.
//
// Returns 0, or 1 when this is no JPEG file or ends before its first scan. The twin is hydrax_gpu._decode.jpeg.scan.
HX_API int hx_jpeg_scan(const unsigned char* data, long size, int* found) {
    for (int k = 0; k < 10; ++k) found[k] = 0;
    found[5] = 1;
    if (size < 4 || data[0] != 0xff || data[1] != 0xd8) return 1;
    long at = 2;
    bool oriented = false;
    for (;;) {
        while (at < size && data[at] != 0xff) ++at;  // libjpeg skips what is between two markers, too
        while (at < size && data[at] == 0xff) ++at;
        if (at + 3 > size) return 1;
        const int marker = data[at++];
        if (marker == 0 || marker == 1 || (marker >= 0xd0 && marker <= 0xd8)) continue;
        if (marker == 0xd9) return 1;
        const long length = big16(data + at);
        if (length < 2 || at + length > size) return 1;
        const unsigned char* body = data + at + 2;
        const long n = length - 2;
        if (marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc) {
            if (n < 6 || found[4]) return 1;
            found[4] = marker;
            found[3] = body[0];
            found[1] = big16(body + 1);
            found[0] = big16(body + 3);
            found[2] = body[5];
        } else if (marker == 0xe1 && !oriented && n >= 14 && !memcmp(body, "Exif\0", 6)) {
            oriented = true;
            found[5] = orientation(body + 6, n - 6);
        } else if (marker == 0xe2 && n >= 12 && !memcmp(body, "ICC_PROFILE", 12)) {
            found[6] = 1;
        } else if (marker == 0xda) {
            if (!found[4]) return 1;
            at += length;
            break;
        }
        at += length;
    }
    if (at > 0x7fffffff) return 1;
    found[7] = (int)at;
    for (long k = size - 2; k >= at; --k)
        if (data[k] == 0xff && data[k + 1] == 0xd9) {
            found[8] = 1;
            break;
        }
    found[9] = 1;
    if (found[4] == 0xc2)
        for (const unsigned char* p = data + at; p < data + size - 1; ++p) {
            p = static_cast<const unsigned char*>(memchr(p, 0xff, data + size - 1 - p));
            if (!p) break;
            found[9] += p[1] == 0xda;
        }
    return 0;
}
