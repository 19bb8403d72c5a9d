// What vectorised_gemm reads: one element of the windows of LANES neighbouring pixels.
//
// All index arithmetic is done once for the pixels and once for an Offset; where they meet there remain two comparisons
// (the padding is zeros) and one addition.
#pragma once
#include "cpu/lane.cuh"
#include "windows.cuh"

// As many ints as a Lane has elements, and what a comparison of them gives: -1 where true.
typedef int Ints __attribute__((vector_size(LANES * sizeof(int))));

__forceinline__ Ints lane_indices() { return __builtin_convertvector(lane_numbers(), Ints); }
__forceinline__ bool any(Ints is_true) {
    int found = 0;
    for (int i = 0; i < LANES; ++i) found |= is_true[i];
    return found;
}
__forceinline__ Ints is_index(Ints index, int size) { return (index >= 0) & (index < size); }
__forceinline__ Lane lane_where(Ints is_true, Lane lane) {
    return __builtin_convertvector(is_true, LaneBits) != 0 ? lane : Lane{};
}

// LANES neighbouring pixels (n,p,q).
struct Pixels {
    Ints n, p, q;

    __forceinline__ Pixels(int first, const PixelGrid& grid)
        : n(Ints{} + first / (grid.P * grid.Q)), p(Ints{} + first / grid.Q % grid.P),
          q(lane_indices() + first % grid.Q) {
        while (any(q >= grid.Q)) p += next(q, grid.Q);
        while (any(p >= grid.P)) n += next(p, grid.P);
    }
    // To pixels `count` further on.
    __forceinline__ void advance(int count, const PixelGrid& grid) {
        q += count % grid.Q;
        p += count / grid.Q % grid.P + next(q, grid.Q);
        n += count / grid.Q / grid.P + next(p, grid.P);
    }
    // 1 where an index has passed the end, and goes on at the beginning.
    static __forceinline__ Ints next(Ints& index, int size) {
        const Ints beyond = index >= size;
        index = beyond ? index - size : index;
        return beyond ? Ints{} + 1 : Ints{};
    }
};

// N images of so many planes, of which those from first_plane on are meant: x ...
struct Image {
    const Scalar *const data, *const end;
    const int N, planes, first_plane, rows, cols;
    // Where the windows of LANES neighbouring pixels begin, their corners:
    int n;           // the image of the first pixel, or the last one
    Ints row, col;   // in the image; those of pixels beyond the last image are nowhere
    Ints line, at;   // the row and the position in memory, counted from the first pixel's plane on
    bool adjacent;   // whether the pixels' windows lie one element apart
    const Scalar *plane, *first, *here;  // the first pixel's plane, its corner, and what an offset means there

    __forceinline__ Image(const Scalar* data, int N, int planes, int first_plane, int rows, int cols)
        : data(data), end(data + Index(N) * planes * rows * cols), N(N), planes(planes), first_plane(first_plane),
          rows(rows), cols(cols) {}

    __forceinline__ void set_corners(const Pixels& pixels, Ints corner_row, Ints corner_col) {
        n = min(int(pixels.n[0]), N - 1);
        row = pixels.n < N ? corner_row : Ints{} + NOWHERE;
        col = corner_col;
        line = (pixels.n - n) * (planes * rows) + corner_row;
        at = line * cols + corner_col;
        adjacent = !any(at != at[0] + lane_indices());
        plane = data + (Index(first_plane) * (rows * cols) + n * (Index(planes) * (rows * cols)));
        first = plane + at[0];
    }
    // Returns where it is outside the padding.
    __forceinline__ Ints go_to(const Offset& offset) {
        here = first + offset.elements;
        return is_index(row + offset.row, rows) & is_index(col + offset.col, cols);
    }
    // What is there, but so many planes on. `apart`: in elements, an array of the same shape that is read instead.
    __forceinline__ Lane read(const Offset& offset, int planes_on, Ints inside, Index apart = 0) const {
        const Scalar* const from = here + Index(planes_on) * (rows * cols);
        Lane lane = {};
        if (adjacent && from >= data && from + LANES <= end) {
            load(lane, from + apart);  // in the padding, others than meant
        } else {
            const Ints safe = inside ? at + offset.elements + planes_on * (rows * cols) : Ints{};
            unroll<LANES>([&](auto i) INLINED { lane[int(i)] = to_acc(plane[apart + safe[int(i)]]); });
        }
        return lane_where(inside, lane);
    }
};

// ... whose windows begin where the output's pixels see them,
struct InputImage : Image {
    const Conv2dShape& shape;

    __forceinline__ InputImage(const Scalar* x, const Conv2dShape& shape, int group)
        : Image(x, shape.N, shape.C, group * shape.group_channels(), shape.H, shape.W), shape(shape) {}
    __forceinline__ void move_to(const Pixels& pixels) {
        set_corners(pixels, pixels.p * shape.stride_h - shape.pad_top, pixels.q * shape.stride_w - shape.pad_left);
    }
};

// ... or g = dy * phi'(s), formed as it is read. Its windows begin at the pixels themselves.
struct GradImage : Image {
    const Saved* saved;
    Index mask_bytes;  // of a row
    Index apart;       // y from dy: what is read of one is read of both

    __forceinline__ GradImage(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, int group)
        : Image(dy, shape.N, shape.K, group * shape.group_filters(), shape.P, shape.Q), saved(saved),
          mask_bytes(mask_row_bytes(shape)),
          apart((reinterpret_cast<Index>(saved) - reinterpret_cast<Index>(dy)) / Index(sizeof(Scalar))) {}

    __forceinline__ void move_to(const Pixels& pixels) { set_corners(pixels, pixels.p, pixels.q); }
    __forceinline__ Lane read(const Offset& offset, int planes_on, Ints inside) const {
        Lane lane = Image::read(offset, planes_on, inside);
        if constexpr (ACTIVATION == IDENTITY) return lane;
        if constexpr (!SAVED_MASK) return times_derivative(lane, Image::read(offset, planes_on, inside, apart));
        unsigned open = 0;
        const Index before = (Index(n) * planes + first_plane) * rows;
        unroll<LANES>([&](auto i) INLINED {
            const int in_plane = line[int(i)] + (offset.plane + planes_on) * rows + offset.row;
            if (inside[int(i)]) open |= open_bit(before + in_plane, col[int(i)] + offset.col) << i;
        });
        keep(lane, open);
        return lane;
    }
    __forceinline__ unsigned open_bit(Index line, int q) const {
        return reinterpret_cast<const MaskByte*>(saved)[line * mask_bytes + q / 8] >> (q % 8) & 1u;
    }
};
