// Reads the window of one pixel at a time, zeros in its padding, in the planes of a group in x or in g.
//
//     reader.move_to(pixel)      once a pixel
//     reader.go_to(offset)       once an offset in its window; or skip_planes(count), there in another plane
//     reader.shift(offset)       for good, once a pixel; then reader.go_to_corner() is where that is
//     reader.advance(way)        to the pixel that is a way further on
//     reader.read<PIXELS>()      there and at the pixels beside it: all of them lie inside, or none
//
// What is read becomes numbers late, by value(i), or as they are stored, by exact(i): until then nobody waits for it.
// Where numbers are what is stored (IS_PLAIN), copy<PIXELS>(to) brings them to shared memory past the registers.
#pragma once
#include <cuda_pipeline.h>

#include <type_traits>

#include "activation_grad.cuh"
#include "windows.cuh"

struct Pixel {
    int n, p, q;

    __device__ __forceinline__ Pixel(int n, int p, int q) : n(n), p(p), q(q) {}
    __device__ __forceinline__ Pixel(int number, const PixelGrid& grid)
        : n(number / (grid.P * grid.Q)), p(number / grid.Q % grid.P), q(number % grid.Q) {}
    // Whether an index has passed the end; then it goes on at the beginning.
    static __device__ __forceinline__ bool passes_end(int& index, int size) {
        if (index < size) return false;
        index -= size;
        return true;
    }
};

// One element, or several side by side, as they come from memory.
template <int PIXELS>
struct Elements {
    static constexpr int BYTES = PIXELS * sizeof(Scalar);
    using Word = std::conditional_t<PIXELS == 1, Scalar, std::conditional_t<BYTES == 4, unsigned,
                 std::conditional_t<BYTES == 8, uint2, std::conditional_t<sizeof(Scalar) == 8, double2, float4>>>>;
    static_assert(sizeof(Word) == BYTES, "a word is one load");
    Word word;

    __device__ __forceinline__ Scalar exact(int i) const { return reinterpret_cast<const Scalar*>(&word)[i]; }
    __device__ __forceinline__ Acc value(int i) const { return to_acc(exact(i)); }
};

// A global address as a number. Of a pointer, nvcc forms each load's address anew from all its parts.
using Address = unsigned long long;

// Brings BYTES to shared memory past the registers, or so many zeros. Of the primitive, which is told at compile time how
// many bytes are zeros, nvcc makes two copies, one for each case.
template <int BYTES>
__device__ __forceinline__ void copy_or_zero(void* to, Address from, bool exists) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const unsigned there = __cvta_generic_to_shared(to);
    if constexpr (BYTES == 16)  // past the first-level cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(there), "l"(from), "r"(exists ? 16 : 0)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(there), "l"(from), "n"(BYTES),
                     "r"(exists ? BYTES : 0)
                     : "memory");
#else
    __pipeline_memcpy_async(to, reinterpret_cast<const void*>(from), BYTES, exists ? 0 : BYTES);
#endif
}

// What the way from a pixel to the one so many further on adds to the row and column where its window begins and, in
// elements, to its address; where a line of pixels has ended, that too, and where an image has. Sums of the elements
// hold 32 bits, though not each of them may.
struct Way {
    int images, rows, cols;
    unsigned elements;
    int end_col, line_cols, line_rows;
    unsigned line_elements;
    int end_row, image_rows;
    unsigned image_elements;
};
struct Ends {
    bool line, image;
};

// Of N images of rows x cols planes those from first_plane on.
struct PlaneReader {
    const Scalar* const planes;  // of image 0
    const int N, rows, cols, image_pitch;
    Address corner, here;
    int row, col;  // of the corner
    bool inside;   // not in the padding; beyond the last image everything is

    __device__ __forceinline__ PlaneReader(const Scalar* images, int N, int all_planes, int first_plane, int rows,
                                           int cols)
        : planes(images + Index(first_plane) * rows * cols), N(N), rows(rows), cols(cols),
          image_pitch(all_planes * rows * cols) {}

    __device__ __forceinline__ Offset offset(int plane, int row, int col) const {
        return {plane, row, col, (plane * rows + row) * cols + col};
    }
    __device__ __forceinline__ void set_corner(int n, int corner_row, int corner_col) {
        row = n < N ? corner_row : NOWHERE;
        col = corner_col;
        corner = Address(planes + Index(n) * image_pitch + corner_row * cols + corner_col);
    }
    // The windows of neighbouring pixels begin so many rows and columns from each other, the first one's at a row and a
    // column.
    __device__ __forceinline__ Way way(int count, const PixelGrid& grid, int down, int across, int first_row,
                                       int first_col) const {
        const int ahead = count / grid.Q % grid.P * down, beside = count % grid.Q * across;
        const unsigned images = count / grid.Q / grid.P, line = unsigned(grid.Q) * across;
        const unsigned image = unsigned(grid.P) * down;
        return {int(images), ahead, beside, images * image_pitch + ahead * cols + beside,
                int(line + first_col), int(line), down, down * unsigned(cols) - line,
                int(image + first_row), int(image), image_pitch - image * cols};
    }
    // Whether there `exists` such a pixel.
    __device__ __forceinline__ Ends advance(const Way& way, bool exists) {
        unsigned elements = way.elements;
        row += way.rows;
        col += way.cols;
        Ends ends;
        if ((ends.line = col >= way.end_col)) {
            col -= way.line_cols;
            row += way.line_rows;
            elements += way.line_elements;
        }
        if ((ends.image = row >= way.end_row)) {
            row -= way.image_rows;
            elements += way.image_elements;
        }
        corner += int(elements) * Index(sizeof(Scalar));
        if (!exists) row = NOWHERE;
        return ends;
    }
    // The same where an image is one line of pixels.
    __device__ __forceinline__ void advance_in_line(const Way& way, bool exists) {
        unsigned elements = way.elements;
        col += way.cols;
        if (col >= way.end_col) {
            col -= way.line_cols;
            elements += way.line_elements + way.image_elements;
        }
        corner += int(elements) * Index(sizeof(Scalar));
        if (!exists) row = NOWHERE;
    }
    // For good.
    __device__ __forceinline__ void shift(const Offset& offset) {
        row += offset.row;
        col += offset.col;
        corner += offset.elements * Index(sizeof(Scalar));
    }
    __device__ __forceinline__ void go_to_corner() {
        inside = unsigned(row) < unsigned(rows) && unsigned(col) < unsigned(cols);
        here = corner;
    }
    __device__ __forceinline__ void go_to(const Offset& offset) {
        inside = unsigned(row + offset.row) < unsigned(rows) && unsigned(col + offset.col) < unsigned(cols);
        here = corner + offset.elements * Index(sizeof(Scalar));
    }
    __device__ __forceinline__ Index bytes_of_planes(int count) const {
        return count * int(sizeof(Scalar)) * Index(rows * cols);
    }
    __device__ __forceinline__ void skip_planes(int count) { here += bytes_of_planes(count); }
    template <int PIXELS>
    static __device__ __forceinline__ Elements<PIXELS> read_at(Address at, bool exists) {
        using Word = typename Elements<PIXELS>::Word;
        return {exists ? __ldg(reinterpret_cast<const Word*>(at)) : Word{}};
    }
    template <int PIXELS>
    __device__ __forceinline__ Elements<PIXELS> read(bool exists = true) const {
        return read_at<PIXELS>(here, exists && inside);
    }
    template <int PIXELS>
    __device__ __forceinline__ void copy(Acc* to) const {
        copy_or_zero<Elements<PIXELS>::BYTES>(to, here, inside);
    }
};

constexpr bool IS_STORED = std::is_same<Scalar, Acc>::value;  // a number is what memory holds

// x, where a pixel of y has its window.
struct InputReader : PlaneReader {
    static constexpr bool IS_PLAIN = IS_STORED;
    const Conv2dShape& shape;

    __device__ __forceinline__ InputReader(const Scalar* x, const Conv2dShape& shape, int group)
        : PlaneReader(x, shape.N, shape.C, group * shape.group_channels(), shape.H, shape.W), shape(shape) {}
    __device__ __forceinline__ void move_to(const Pixel& pixel) {
        set_corner(pixel.n, shape.input_row(pixel.p, 0), shape.input_col(pixel.q, 0));
    }
    // Of windows that begin at this offset.
    __device__ __forceinline__ Way way(int count, const PixelGrid& grid, const Offset& offset) const {
        return PlaneReader::way(count, grid, shape.stride_h, shape.stride_w, offset.row - shape.pad_top,
                                offset.col - shape.pad_left);
    }
};

// g = dy * phi'(s), formed from dy and from what the forward pass saved: y, or its bit mask, of which the pixels that
// are read at once share a byte. The corner is the pixel itself.
template <int PIXELS>
struct GradElements {
    Elements<PIXELS> dy, y;
    MaskByte mask;
    int bit;  // of the first pixel

    __device__ __forceinline__ bool has_bit(int i) const { return mask >> (bit + i) & 1; }
    __device__ __forceinline__ Acc value(int i) const {
        const Acc g = dy.value(i);
        if constexpr (ACTIVATION == IDENTITY) return g;
        if constexpr (SAVED_MASK) return has_bit(i) ? g : Acc(0);
        return times_derivative(g, y.value(i));
    }
    // The same where phi' is 0 or 1.
    __device__ __forceinline__ Scalar exact(int i) const {
        if constexpr (ACTIVATION == IDENTITY) return dy.exact(i);
        const bool is_open = SAVED_MASK ? has_bit(i) : times_derivative(1, y.value(i)) != 0;
        return is_open ? dy.exact(i) : Scalar(0.0f);
    }
};

struct GradReader {
    static constexpr bool IS_PLAIN = IS_STORED && ACTIVATION == IDENTITY;
    const int mask_bytes, mask_pitch;  // bytes of a row of the mask, and from an image's to the next
    PlaneReader dy;
    const Address y_beside;  // from an element of dy to that of y
    const MaskByte* const mask;
    Address y_here, mask_corner, mask_row;
    int mask_col;

    // in_lines: as if each image were one row of pixels.
    __device__ __forceinline__ GradReader(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, int group,
                                          bool in_lines = false)
        : mask_bytes(mask_row_bytes(shape)), mask_pitch(shape.K * shape.P * mask_bytes),
          dy(dy, shape.N, shape.K, group * shape.group_filters(), in_lines ? 1 : shape.P,
             in_lines ? shape.P * shape.Q : shape.Q),
          y_beside(Address(saved) - Address(dy)),
          mask(reinterpret_cast<const MaskByte*>(saved) +
               Index(group) * shape.group_filters() * shape.P * mask_bytes) {}

    __device__ __forceinline__ void move_to(const Pixel& pixel) { set_corner(pixel.n, pixel.p, pixel.q); }
    __device__ __forceinline__ Offset offset(int plane, int row, int col) const { return dy.offset(plane, row, col); }
    __device__ __forceinline__ void set_corner(int n, int p, int q) {
        dy.set_corner(n, p, q);
        mask_corner = Address(mask + Index(n) * mask_pitch + p * mask_bytes);
    }
    // Of rows at no offset.
    __device__ __forceinline__ Way way(int count, const PixelGrid& grid, const Offset&) const {
        return dy.way(count, grid, 1, 1, 0, 0);
    }
    __device__ __forceinline__ void advance(const Way& way, bool exists) {
        if constexpr (SAVED_MASK) {
            const Ends ends = dy.advance(way, exists);
            mask_corner += (way.images + ends.image) * Index(mask_pitch) +
                           (way.rows + ends.line - ends.image * dy.rows) * Index(mask_bytes);
        } else
            dy.advance_in_line(way, exists);
    }
    __device__ __forceinline__ void shift(const Offset& offset) {
        dy.shift(offset);
        mask_corner += Index(offset.plane * dy.rows) * mask_bytes;
    }
    __device__ __forceinline__ void go_to_corner() {
        dy.go_to_corner();
        y_here = dy.here + y_beside;
        mask_row = mask_corner;
        mask_col = dy.col;
    }
    __device__ __forceinline__ void go_to(const Offset& offset) {
        dy.go_to(offset);
        y_here = dy.here + y_beside;
        mask_row = mask_corner + Index(offset.plane * dy.rows + offset.row) * mask_bytes;
        mask_col = dy.col + offset.col;
    }
    __device__ __forceinline__ void skip_planes(int count) {
        dy.skip_planes(count);
        y_here += dy.bytes_of_planes(count);
        mask_row += count * Index(dy.rows * mask_bytes);
    }
    template <int PIXELS>
    __device__ __forceinline__ void copy(Acc* to) const {
        dy.copy<PIXELS>(to);
    }
    template <int PIXELS>
    __device__ __forceinline__ GradElements<PIXELS> read(bool exists = true) const {
        GradElements<PIXELS> found;
        const bool is_read = exists && dy.inside;
        found.dy = PlaneReader::read_at<PIXELS>(dy.here, is_read);
        if constexpr (ACTIVATION == IDENTITY) return found;
        if constexpr (SAVED_MASK) {
            const MaskByte* const byte = reinterpret_cast<const MaskByte*>(mask_row) + mask_col / 8;
            found.mask = is_read ? __ldg(byte) : MaskByte(0);
            found.bit = mask_col % 8;
        } else
            found.y = PlaneReader::read_at<PIXELS>(y_here, is_read);
        return found;
    }
};
