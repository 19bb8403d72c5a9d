// Reads the window of one pixel at a time, zeros in its padding, in the planes of a group in x or in g.
//
//     reader.move_to(pixel)      once a pixel
//     reader.go_to(offset)       once an offset in its window; or skip_planes(count), there in another plane
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
    // To the pixel `count` further on.
    __device__ __forceinline__ void advance(int count, const PixelGrid& grid) {
        q += count % grid.Q;
        p += count / grid.Q % grid.P + passes_end(q, grid.Q);
        n += count / grid.Q / grid.P + passes_end(p, grid.P);
    }
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
    __device__ __forceinline__ void go_to(const Offset& offset) {
        inside = unsigned(row + offset.row) < unsigned(rows) && unsigned(col + offset.col) < unsigned(cols);
        here = corner + offset.elements * Index(sizeof(Scalar));
    }
    __device__ __forceinline__ void skip_planes(int count) {
        here += count * int(sizeof(Scalar)) * Index(rows * cols);
    }
    // beside: how many bytes further on, in an array of the same extents.
    template <int PIXELS>
    __device__ __forceinline__ Elements<PIXELS> read(bool exists = true, Address beside = 0) const {
        using Word = typename Elements<PIXELS>::Word;
        return {exists && inside ? __ldg(reinterpret_cast<const Word*>(here + beside)) : Word{}};
    }
    template <int PIXELS>
    __device__ __forceinline__ void copy(Acc* to) const {
        constexpr int BYTES = Elements<PIXELS>::BYTES;
        __pipeline_memcpy_async(to, reinterpret_cast<const void*>(here), BYTES, inside ? 0 : BYTES);
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
    Address mask_corner, mask_row;
    int mask_col;

    __device__ __forceinline__ GradReader(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, int group)
        : mask_bytes(mask_row_bytes(shape)), mask_pitch(shape.K * shape.P * mask_bytes),
          dy(dy, shape.N, shape.K, group * shape.group_filters(), shape.P, shape.Q),
          y_beside(Address(saved) - Address(dy)),
          mask(reinterpret_cast<const MaskByte*>(saved) +
               Index(group) * shape.group_filters() * shape.P * mask_bytes) {}

    __device__ __forceinline__ void move_to(const Pixel& pixel) { set_corner(pixel.n, pixel.p, pixel.q); }
    __device__ __forceinline__ Offset offset(int plane, int row, int col) const { return dy.offset(plane, row, col); }
    __device__ __forceinline__ void set_corner(int n, int p, int q) {
        dy.set_corner(n, p, q);
        mask_corner = Address(mask + Index(n) * mask_pitch + p * mask_bytes);
    }
    __device__ __forceinline__ void go_to(const Offset& offset) {
        dy.go_to(offset);
        mask_row = mask_corner + Index(offset.plane * dy.rows + offset.row) * mask_bytes;
        mask_col = dy.col + offset.col;
    }
    __device__ __forceinline__ void skip_planes(int count) {
        dy.skip_planes(count);
        mask_row += count * Index(dy.rows * mask_bytes);
    }
    template <int PIXELS>
    __device__ __forceinline__ void copy(Acc* to) const {
        dy.copy<PIXELS>(to);
    }
    template <int PIXELS>
    __device__ __forceinline__ GradElements<PIXELS> read(bool exists = true) const {
        GradElements<PIXELS> found;
        found.dy = dy.read<PIXELS>(exists);
        if constexpr (ACTIVATION == IDENTITY) return found;
        if constexpr (SAVED_MASK) {
            const MaskByte* const byte = reinterpret_cast<const MaskByte*>(mask_row) + mask_col / 8;
            found.mask = exists && dy.inside ? __ldg(byte) : MaskByte(0);
            found.bit = mask_col % 8;
        } else
            found.y = dy.read<PIXELS>(exists, y_beside);
        return found;
    }
};
