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

// Where the windows of LANES neighbouring pixels begin, in the first plane that is meant.
struct Corners {
    int n;          // the image of the first pixel, or the last one
    Ints row, col;  // in the image
    Ints line, at;  // the row and the position in memory, counted from the first pixel's plane on
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
        if constexpr (LANES > 1) {
            while (any_lane(q >= grid.Q)) p += next(q, grid.Q);
            while (any_lane(p >= grid.P)) n += next(p, grid.P);
        }
    }
    // To pixels `count` further on.
    __device__ __forceinline__ void advance(int count, const PixelGrid& grid) {
        q += count % grid.Q;
        p += count / grid.Q % grid.P + next(q, grid.Q);
        n += count / grid.Q / grid.P + next(p, grid.P);
    }
    // 1 where an index has passed the end, and goes on at the beginning.
    static __device__ __forceinline__ Ints next(Ints& index, int size) {
        const IntsTrue beyond = index >= size;
        index = beyond ? index - size : index;
        return beyond ? Ints{} + 1 : Ints{};
    }
};

// The corners of pixels; those beyond the last image are nowhere. corner_of(pixels, row, col) sets the last two.
template <class Source, class CornerOf>
__device__ __forceinline__ void find_corners(Corners& corners, Source& source, const Pixels& pixels,
                                             const PixelGrid& grid, CornerOf&& corner_of) {
    Ints row, col;
    corner_of(pixels, row, col);
    corners.n = min(element(pixels.n, 0), grid.N - 1);
    corners.row = pixels.n < grid.N ? row : Ints{} + NOWHERE;
    corners.col = col;
    corners.line = (pixels.n - corners.n) * (source.planes * source.rows) + row;
    corners.at = corners.line * source.cols + col;
    corners.adjacent = !any_lane(corners.at != element(corners.at, 0) + lane_indices());
    source.move_to(corners);
}

// N images of so many planes, of which those from first_plane on are meant: x ...
struct Image {
    const Scalar *const data, *const end;
    const Scalar *plane, *first, *here;  // of the corners: the plane, and the first one; what a step means there
    const int planes, first_plane, rows, cols;

    __device__ __forceinline__ Image(const Scalar* data, int N, int planes, int first_plane, int rows, int cols)
        : data(data), end(data + Index(N) * planes * rows * cols), planes(planes), first_plane(first_plane),
          rows(rows), cols(cols) {}

    __device__ __forceinline__ void move_to(const Corners& corners) {
        plane = data + (Index(first_plane) * (rows * cols) + corners.n * (Index(planes) * (rows * cols)));
        first = formed(plane + element(corners.at, 0));
    }
    __device__ __forceinline__ void look_at(const Step& step) { here = formed(first + step.offset); }
    // What the step means that was looked at, but in another plane: PIECES lanes, all of them inside or none. `apart`:
    // counted in elements, an array of the same shape that is read instead.
    template <int PIECES>
    __device__ __forceinline__ void read(Lane* lanes, const Corners& corners, const Step& step, int planes_on,
                                         IntsTrue inside, Index apart = 0) const {
        const Scalar* const from = further(here, planes_on, rows * cols);
        if constexpr (PIECES > 1) {
            unroll<PIECES>([&](auto i) INLINED { lanes[i] = Lane{}; });
            if (any_lane(inside)) load<PIECES>(lanes, from + apart);
        } else if (LANES > 1 && corners.adjacent && from >= data && from + LANES <= end) {
            load<LANES>(lanes, from + apart);  // in the padding, others than meant
            *lanes = lane_where(inside, *lanes);
        } else
            *lanes = gather(from + apart, plane + apart, corners.at, step.offset + planes_on * (rows * cols), inside);
    }
};

// ... or g = dy * phi'(s), formed as it is read.
struct GradImage : Image {
    const Saved* saved;
    Index apart;  // y from dy: what is read of one is read of both

    __device__ __forceinline__ GradImage(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, int group)
        : Image(dy, shape.N, shape.K, group * shape.group_filters(), shape.P, shape.Q), saved(saved),
          apart((reinterpret_cast<Index>(saved) - reinterpret_cast<Index>(dy)) / Index(sizeof(Scalar))) {}

    template <int PIECES>
    __device__ __forceinline__ void read(Lane* lanes, const Corners& corners, const Step& step, int planes_on,
                                         IntsTrue inside) const {
        Image::read<PIECES>(lanes, corners, step, planes_on, inside);
        if constexpr (ACTIVATION == IDENTITY) return;
        if constexpr (!std::is_same<Saved, MaskByte>::value) {
            Lane outputs[PIECES];
            Image::read<PIECES>(outputs, corners, step, planes_on, inside, apart);
            unroll<PIECES>([&](auto i) INLINED { lanes[i] = times_derivative(lanes[i], outputs[i]); });
        } else {
            unroll<PIECES>([&](auto piece) INLINED {
                unsigned open = 0;
                unroll<LANES>([&](auto i) INLINED {
                    const int line = element(corners.line, i) + (step.plane + planes_on) * rows + step.row;
                    const Index before = (Index(corners.n) * planes + first_plane) * rows;
                    if (element(inside, i)) open |= open_bit(before + line, element(corners.col, i) + step.col + piece) << i;
                });
                keep(lanes[piece], open);
            });
        }
    }
    // Columns beyond the last are in the next line.
    __device__ __forceinline__ unsigned open_bit(Index line, int col) const {
        const int q = col % cols;
        return bits()[(line + col / cols) * ((cols + 7) / 8) + q / 8] >> (q % 8) & 1u;
    }
    __device__ __forceinline__ const MaskByte* bits() const { return reinterpret_cast<const MaskByte*>(saved); }
};

// Looks at what a step means in the windows of LANES pixels. Returns where it is outside the padding, where there is
// one.
template <bool PADDED, class Source>
__device__ __forceinline__ IntsTrue look_at(Source& source, const Corners& corners, const Step& step) {
    source.look_at(step);
    const Ints row = corners.row + step.row, col = corners.col + step.col;
    return PADDED ? is_index(row, source.rows) & is_index(col, source.cols) : row >= 0;
}
