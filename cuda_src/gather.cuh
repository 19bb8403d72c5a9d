// What implicit_gemm reads: one element of the windows of LANES neighbouring pixels.
//
// A pixel sees a window of each plane of its image: where the windows begin is the pixel's corner, and which element
// of which plane is meant a Step. So all index arithmetic is done once for a pixel and once for a step, and where they
// meet there remain two comparisons (the padding is zeros) and one addition.
#pragma once
#include <type_traits>

#include "lane.cuh"

struct alignas(16) Step {
    int plane, row, col;  // counted from the corner
    int offset;           // the same, in elements
};

// The row of pixels and steps that are there only to fill a tile: it lies outside whatever is added to it.
constexpr int NOWHERE = -(1 << 30);

// Where the windows of LANES neighbouring pixels begin, in the first plane of their images.
struct Corners {
    Index plane;    // of the first pixel, or of the last image's
    Ints row, col;  // in the image
    Ints line, at;  // the row and the position in memory, counted from `plane` on
    bool adjacent;  // whether the pixels' windows lie one element apart
};

// The pixels of N images of P x Q are numbered in the order n p q.
struct PixelGrid {
    int N, P, Q;

    __device__ __forceinline__ int count() const { return N * P * Q; }
};

// LANES neighbouring pixels (n,p,q).
struct Pixels {
    Ints n, p, q;

    __device__ __forceinline__ Pixels(int first, const PixelGrid& grid)
        : n(Ints{} + first / (grid.P * grid.Q)), p(Ints{} + first / grid.Q % grid.P),
          q(lane_indices() + first % grid.Q) {
        wrap(grid);
    }
    // To pixels so many rows and columns further on.
    __device__ __forceinline__ void advance(int rows, int cols, const PixelGrid& grid) {
        p += rows;
        q += cols;
        wrap(grid);
    }
    __device__ __forceinline__ void wrap(const PixelGrid& grid) {
        for (IntsTrue beyond = q >= grid.Q; any_lane(beyond); beyond = q >= grid.Q) {
            q = beyond ? q - grid.Q : q;
            p = beyond ? p + 1 : p;
        }
        for (IntsTrue beyond = p >= grid.P; any_lane(beyond); beyond = p >= grid.P) {
            p = beyond ? p - grid.P : p;
            n = beyond ? n + 1 : n;
        }
    }
};

// The corners of pixels; those beyond the last image are nowhere. corner_of(pixels, row, col) sets the last two; an
// image has `planes` planes, of which those from first_plane on are meant.
template <class Source, class CornerOf>
__device__ __forceinline__ void find_corners(Corners& corners, Source& source, int planes, int first_plane,
                                             const Pixels& pixels, const PixelGrid& grid, CornerOf&& corner_of) {
    Ints row, col;
    corner_of(pixels, row, col);
    const int first_n = min(element(pixels.n, 0), grid.N - 1);
    corners.plane = Index(first_n) * planes + first_plane;
    corners.row = pixels.n < grid.N ? row : Ints{} + NOWHERE;
    corners.col = col;
    corners.line = (pixels.n - first_n) * (planes * source.rows) + row;
    corners.at = corners.line * source.cols + col;
    corners.adjacent = !any_lane(corners.at != element(corners.at, 0) + lane_indices());
    source.move_to(corners);
}

// x ...
struct Image {
    const Scalar *data, *plane, *first;  // of the corners: the plane, and the first one
    Index size;
    int rows, cols;

    __device__ __forceinline__ Image(const Scalar* data, Index planes, int rows, int cols)
        : data(data), size(planes * rows * cols), rows(rows), cols(cols) {}

    __device__ __forceinline__ void move_to(const Corners& corners) {
        plane = data + corners.plane * rows * cols;
        first = formed(plane + element(corners.at, 0));
    }
    __device__ __forceinline__ Lane read(const Corners& corners, const Step& step, IntsTrue inside) const {
        const Index at = first + step.offset - data;
        if (LANES > 1 && corners.adjacent && 0 <= at && at + LANES <= size) {
            Lane lane;  // in the padding, others than meant
            load<LANES>(&lane, data + at);
            return lane_where(inside, lane);
        }
        return gather(first, plane, corners.at, step.offset, inside);
    }
};

// ... or g = dy * phi'(s), formed as it is read.
struct GradImage {
    Image dy, y;
    const Saved* saved;
    int rows, cols;

    __device__ __forceinline__ GradImage(const Scalar* dy, const Saved* saved, const Conv2dShape& shape)
        : dy(dy, Index(shape.N) * shape.K, shape.P, shape.Q),
          y(reinterpret_cast<const Scalar*>(saved), Index(shape.N) * shape.K, shape.P, shape.Q), saved(saved),
          rows(shape.P), cols(shape.Q) {}

    __device__ __forceinline__ void move_to(const Corners& corners) {
        dy.move_to(corners);
        if (!std::is_same<Saved, MaskByte>::value) y.move_to(corners);
    }
    __device__ __forceinline__ Lane read(const Corners& corners, const Step& step, IntsTrue inside) const {
        const Lane grad = dy.read(corners, step, inside);
        return ACTIVATION == IDENTITY ? grad : through(saved, grad, corners, step, inside);
    }
    __device__ __forceinline__ Lane through(const Scalar*, Lane grad, const Corners& corners, const Step& step,
                                            IntsTrue inside) const {
        return times_derivative(grad, y.read(corners, step, inside));
    }
    __device__ __forceinline__ Lane through(const MaskByte* bits, Lane grad, const Corners& corners,
                                            const Step& step, IntsTrue inside) const {
        const int row_bytes = (cols + 7) / 8;
        unsigned open = 0;
        unroll<LANES>([&](auto i) INLINED {
            if (!element(inside, i)) return;
            const Index line = corners.plane * rows + element(corners.line, i) + step.plane * rows + step.row;
            const int q = element(corners.col, i) + step.col;
            open |= (bits[line * row_bytes + q / 8] >> (q % 8) & 1u) << i;
        });
        keep(grad, open);
        return grad;
    }
};

// The elements that a step means in the windows of LANES pixels; 0 in the padding, where there is one.
template <bool PADDED, class Source>
__device__ __forceinline__ Lane gather(const Source& source, const Corners& corners, const Step& step) {
    const Ints row = corners.row + step.row, col = corners.col + step.col;
    const IntsTrue inside = PADDED ? is_index(row, source.rows) & is_index(col, source.cols) : row >= 0;
    return source.read(corners, step, inside);
}
