/* What libjpeg-turbo alone needs for a file, with nothing around it: the limits of the benchmark `jpeg`.
 *
 * Built by benchmarks/jpeg_limits.py with the headers of the system, and not linked: that module loads the libjpeg-turbo
 * to measure first. Each function is called by several threads at once, without the interpreter's lock, reads the file
 * into a buffer of its thread that is used again, and uses that thread's decompressor again.
 *
 * They return 0, or 1 if libjpeg reported an error, 2 if the file could not be read, 3 if the output has no room.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jpeglib.h>

#define ROWS 16

struct handler {
  struct jpeg_error_mgr base;
  jmp_buf escape;
};

static _Thread_local struct jpeg_decompress_struct decompressor;
static _Thread_local struct handler handler;
static _Thread_local int ready;
static _Thread_local unsigned char *file_bytes;
static _Thread_local size_t file_room;

static void fail(j_common_ptr info) { longjmp(((struct handler *)info->err)->escape, 1); }
static void quiet(j_common_ptr info) { (void)info; }

static long read_file(const char *path) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return -1;
  struct stat status;
  long got = -1;
  if (fstat(file, &status) == 0) {
    if ((size_t)status.st_size > file_room) {
      free(file_bytes);
      file_room = 2 * (size_t)status.st_size;
      file_bytes = malloc(file_room);
    }
    got = file_bytes == NULL ? -1 : (long)read(file, file_bytes, (size_t)status.st_size);
    if (got != (long)status.st_size) got = -1;
  }
  close(file);
  return got;
}

/* Reads the file and its header; the caller has set the jump. */
static int begin(const char *path) {
  long size = read_file(path);
  if (size < 0) return 2;
  jpeg_mem_src(&decompressor, file_bytes, (unsigned long)size);
  jpeg_read_header(&decompressor, TRUE);
  return 0;
}

static void prepare(void) {
  if (ready) return;
  decompressor.err = jpeg_std_error(&handler.base);
  handler.base.error_exit = fail;
  handler.base.output_message = quiet;
  jpeg_create_decompress(&decompressor);
  ready = 1;
}

static void read_rows(unsigned char *out, size_t stride, JDIMENSION rows) {
  JSAMPROW row[ROWS];
  for (JDIMENSION done = 0; done < rows;) {
    JDIMENSION ask = rows - done < ROWS ? rows - done : ROWS;
    for (JDIMENSION i = 0; i < ask; i++) row[i] = out + (done + i) * stride;
    done += jpeg_read_scanlines(&decompressor, row, ask);
  }
}

/* Huffman decoding of the whole file, and nothing else. */
int huffman(const char *path) {
  prepare();
  if (setjmp(handler.escape)) {
    jpeg_abort_decompress(&decompressor);
    return 1;
  }
  int status = begin(path);
  if (status == 0) {
    jpeg_read_coefficients(&decompressor);
    jpeg_abort_decompress(&decompressor);
  }
  return status;
}

/* Decodes all of it to RGB in rows without padding; its size goes to `width` and `height`. */
int full(const char *path, unsigned char *out, size_t room, int *width, int *height) {
  prepare();
  if (setjmp(handler.escape)) {
    jpeg_abort_decompress(&decompressor);
    return 1;
  }
  int status = begin(path);
  if (status) return status;
  decompressor.out_color_space = JCS_RGB;
  jpeg_start_decompress(&decompressor);
  *width = (int)decompressor.output_width;
  *height = (int)decompressor.output_height;
  size_t stride = (size_t)3 * decompressor.output_width;
  if (stride * decompressor.output_height > room) {
    jpeg_abort_decompress(&decompressor);
    return 3;
  }
  read_rows(out, stride, decompressor.output_height);
  jpeg_abort_decompress(&decompressor);
  return 0;
}

/* Decodes rows y to y + h of the columns that hold x to x + w. libjpeg starts at a block's border, so `left` says at
 * which column of the output x lies, and `width` how many columns the output has. */
int region(const char *path, int x, int y, int w, int h, unsigned char *out, size_t room, int *width, int *left) {
  prepare();
  if (setjmp(handler.escape)) {
    jpeg_abort_decompress(&decompressor);
    return 1;
  }
  int status = begin(path);
  if (status) return status;
  decompressor.out_color_space = JCS_RGB;
  jpeg_start_decompress(&decompressor);
  JDIMENSION start = (JDIMENSION)x, columns = (JDIMENSION)w;
  if (columns < decompressor.output_width) jpeg_crop_scanline(&decompressor, &start, &columns);
  *left = x - (int)start;
  *width = (int)columns;
  size_t stride = (size_t)3 * columns;
  if (stride * (size_t)h > room) {
    jpeg_abort_decompress(&decompressor);
    return 3;
  }
  if (y > 0) jpeg_skip_scanlines(&decompressor, (JDIMENSION)y);
  read_rows(out, stride, (JDIMENSION)h);
  jpeg_abort_decompress(&decompressor);
  return 0;
}

/* Lets go of what this thread holds. */
void leave(void) {
  if (ready) jpeg_destroy_decompress(&decompressor);
  ready = 0;
  free(file_bytes);
  file_bytes = NULL;
  file_room = 0;
}
