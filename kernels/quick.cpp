// The common case of a picture from end to end: an ordinary JPEG file is read, its crop drawn, and the part that is
// needed decoded, in one call. Whatever is not ordinary is left to hydrax_gpu._decode.chain, which begins anew and has
// the words for what is wrong. Draws and boxes are those of hydrax_gpu._decode.draws and .geometry, to the last bit.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

extern "C" int hx_jpeg_scan(const unsigned char* data, long size, int* found);
extern "C" int hx_jpeg_decode(void* reader, const unsigned char* data, unsigned long size, int eighths, int color,
                              int* box, const int* expected, unsigned char* out, long stride, long capacity);
extern "C" void hx_philox(uint64_t key, uint32_t* words);

namespace {

struct Request {
    const char* path;           // of the file, or null: then the file is in memory already
    const unsigned char* data;  // its bytes; read into `file` from a path
    int64_t size;
    uint64_t seed;
    unsigned char* file;
    int64_t file_capacity;
    unsigned char* pixels;
    int64_t pixel_capacity;
    int64_t max_file_bytes;
    int64_t max_pixels;
    double scale[2];
    double ratio[2];
    double flip_chance;
    double reduce;
    int32_t seeded;  // whether there is a seed
    int32_t crop;    // 0 the whole, 1 random, 2 the middle
    int32_t resize;  // of the middle
    int32_t height;  // of the result
    int32_t width;
    int32_t gray;
    uint32_t purpose;
    // what was found
    int32_t flip;
    int32_t columns;  // of the decoded part
    int32_t rows;
    int32_t stride;
    int32_t box[4];  // in the decoded part, in eighths of a pixel
    int32_t reserved;
};

constexpr double kUnit = 1.0 / 4294967296.0;

void draw(const Request& r, uint32_t attempt, uint32_t* words) {
    words[0] = attempt, words[1] = words[2] = 0, words[3] = r.purpose;
    hx_philox(r.seed, words);
}

// In eighths of a pixel.
void random_box(const Request& r, int width, int height, int* box) {
    for (uint32_t attempt = 1; attempt <= 10; ++attempt) {
        uint32_t word[4];
        draw(r, attempt, word);
        const double area = (double)((int64_t)width * height) * (r.scale[0] + word[0] * kUnit * (r.scale[1] - r.scale[0]));
        const double aspect = r.ratio[0] * std::pow(r.ratio[1] / r.ratio[0], word[1] * kUnit);
        const double w = std::nearbyint(std::sqrt(area * aspect)), h = std::nearbyint(std::sqrt(area / aspect));
        if (w > 0 && w <= width && h > 0 && h <= height) {
            box[0] = 8 * (int)((uint64_t)word[2] * (uint64_t)(width - (int)w + 1) >> 32);
            box[1] = 8 * (int)((uint64_t)word[3] * (uint64_t)(height - (int)h + 1) >> 32);
            box[2] = 8 * (int)w;
            box[3] = 8 * (int)h;
            return;
        }
    }
    int w = width, h = height;
    if (width < r.ratio[0] * height)
        h = (int)std::fmax(1.0, std::nearbyint(width / r.ratio[0]));
    else if (width > r.ratio[1] * height)
        w = (int)std::fmax(1.0, std::nearbyint(height * r.ratio[1]));
    box[0] = 8 * ((width - w) / 2), box[1] = 8 * ((height - h) / 2), box[2] = 8 * w, box[3] = 8 * h;
}

void center_box(const Request& r, int width, int height, int* box) {
    const int shorter = width < height ? width : height;
    const double w = std::nearbyint((double)((int64_t)8 * r.width * shorter) / r.resize);
    const double h = std::nearbyint((double)((int64_t)8 * r.height * shorter) / r.resize);
    box[2] = (int)std::fmin(8.0 * width, std::fmax(1.0, w));
    box[3] = (int)std::fmin(8.0 * height, std::fmax(1.0, h));
    box[0] = (8 * width - box[2]) / 2;
    box[1] = (8 * height - box[3]) / 2;
}

int read_file(Request& r) {
    const int fd = open(r.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return 1;
    struct stat status;
    int wrong = fstat(fd, &status) || !S_ISREG(status.st_mode) || status.st_size <= 0 ||
                status.st_size > r.file_capacity || status.st_size > r.max_file_bytes;
    int64_t done = 0;
    while (!wrong && done < status.st_size) {
        const ssize_t count = read(fd, r.file + done, status.st_size - done);
        if (count <= 0) wrong = 1;
        done += count;
    }
    close(fd);
    r.data = r.file;
    r.size = done;
    return wrong;
}

int ceil_div(int64_t n, int64_t d) { return (int)((n + d - 1) / d); }
int least(int a, int b) { return b < a ? b : a; }

}  // namespace

// Returns 0 when the part is in `pixels`; anything else when this is no ordinary picture.
extern "C" __attribute__((visibility("default"))) int hx_jpeg_quick(void* reader, Request* request) {
    Request& r = *request;
    if (r.path && read_file(r)) return 1;
    int found[10];
    if (hx_jpeg_scan(r.data, r.size, found)) return 1;
    const int width = found[0], height = found[1];
    const bool ordinary = width && height && (found[2] == 1 || found[2] == 3) && found[3] == 8 && found[5] == 1 &&
                          (found[4] == 0xc0 || found[4] == 0xc1) && found[8] &&
                          (int64_t)width * height <= r.max_pixels;
    if (!ordinary) return 1;

    int box[4] = {0, 0, 8 * width, 8 * height};
    if (r.crop == 1) random_box(r, width, height, box);
    if (r.crop == 2) center_box(r, width, height, box);
    r.flip = 0;
    if (r.seeded && r.flip_chance > 0) {
        uint32_t word[4];
        draw(r, 0, word);
        r.flip = word[0] * kUnit < r.flip_chance;
    }

    double room = std::fmin((double)box[2] / (8.0 * r.width), (double)box[3] / (8.0 * r.height)) / r.reduce;
    int eighths = 8;
    for (; eighths > 1 && room >= 2; room /= 2) eighths /= 2;

    const int columns = ceil_div((int64_t)width * eighths, 8), rows = ceil_div((int64_t)height * eighths, 8);
    const int x = (int)((int64_t)box[0] * eighths / 8), y = (int)((int64_t)box[1] * eighths / 8);
    const int right = ceil_div((int64_t)(box[0] + box[2]) * eighths, 8);
    const int bottom = ceil_div((int64_t)(box[1] + box[3]) * eighths, 8);
    const int first = x / 8, top = y / 8;
    const int last = least(columns, ceil_div(right, 8)), end = least(rows, ceil_div(bottom, 8));

    // a column more at the left and two at the right; see hydrax_gpu._decode.turbo
    const int from = first > 0 ? first - 1 : 0, to = least(columns, last + 2);
    const int pixel = r.gray ? 1 : 3;
    int part[4] = {from, top, to - from, end - top};
    const int size[2] = {width, height};
    r.stride = (to - from + 32) * pixel;
    if (hx_jpeg_decode(reader, r.data, r.size, eighths, r.gray ? 1 : 2, part, size, r.pixels, r.stride, r.pixel_capacity))
        return 1;
    r.columns = part[2];
    r.rows = part[3];
    r.box[0] = x - 8 * part[0];
    r.box[1] = y - 8 * top;
    r.box[2] = least(right, 8 * columns) - x;
    r.box[3] = least(bottom, 8 * rows) - y;
    return 0;
}
