// The filter of a forward pass or an input gradient, as their matrix product multiplies it:
//     out[m][pixel] = sum_d filter[d][m] * window of the pixel[d]
//
// A launch of its own packs it into scratch memory, once a call: there the TILE_M rows of a tile are side by side, as a
// block wants them in shared memory, where in w they lie a whole filter apart; and it ends with zeros where tiles and
// slices of DEPTH steps end. Before it stands a table of the steps' offsets in a window, so that the product does no
// index arithmetic. A Phase is a set of pixels that meet the same taps: so many rows and columns of them (down, across)
// in each plane, which are the steps of the sum (depth).
#pragma once
#include "windows.cuh"

// What a block computes: rows first_m on of a group, at pixels first_pixel on of a phase.
struct Tile {
    int number;  // of those of its group
    int group, phase, first_m, first_pixel;
};

// How a slice of a tile lies in scratch memory: the rows of a step side by side.
struct RowsAside {
    static constexpr int SIZE = DEPTH * TILE_M;

    static __device__ __forceinline__ void put(Acc* slice, int step, int row, Acc value) {
        slice[step * TILE_M + row] = value;
    }
};

template <class Phase, class Layout = RowsAside>
struct PackedFilter {
    int phases, groups, tiles, slices;  // tiles of a group, slices of the longest phase
    Offset* offsets;                    // [phase][slices * DEPTH]
    Acc* rows;                          // [phase][group][tile][slices][Layout::SIZE]

    __device__ __forceinline__ PackedFilter(Acc* scratch, const Conv2dShape& shape, int slices)
        : phases(Phase::count(shape)), groups(shape.groups), tiles((Phase::rows(shape) + TILE_M - 1) / TILE_M),
          slices(slices), offsets(reinterpret_cast<Offset*>(scratch)),
          rows(reinterpret_cast<Acc*>(offsets + Index(phases) * slices * DEPTH)) {}

    // Consecutive blocks share their pixels, of which no phase has more than so many.
    __device__ __forceinline__ Tile tile_of_block(int pixels) const {
        const int pixel_tiles = (pixels + TILE_N - 1) / TILE_N, block = block_number();
        const int number = block % tiles, rest = block / tiles;
        return {number, rest / pixel_tiles % groups, rest / pixel_tiles / groups, number * TILE_M,
                rest % pixel_tiles * TILE_N};
    }
    __device__ __forceinline__ const Offset* offsets_of(const Tile& tile, int slice = 0) const {
        return offsets + (Index(tile.phase) * slices + slice) * DEPTH;
    }
    __device__ __forceinline__ const Acc* rows_of(const Tile& tile, int slice = 0) const {
        const Index number = (Index(tile.phase) * groups + tile.group) * tiles + tile.number;
        return rows + (number * slices + slice) * Layout::SIZE;
    }
    __device__ __forceinline__ Acc* end() const { return rows + Index(phases) * groups * tiles * slices * Layout::SIZE; }
};

// Along one axis, where the pixel that pixel 0 of a phase sees through tap 0 lies, and how much further on its others.
struct SeenPixels {
    int first, step;

    // Of so many taps the lowest, and how far above it the first is.
    __device__ __forceinline__ int above(int taps) const { return max(0, (taps - 1) * -step); }
    __device__ __forceinline__ int lowest(int taps) const { return first - above(taps); }
};

// Where a step of a phase's sum lies in the filter: the plane, and the i-th and j-th of the phase's rows and columns
// of taps. With ONE_TAP a slice is DEPTH planes at one tap, so that its first offset tells all of them; else the planes
// come one after the other.
struct Tap {
    int plane, i, j;

    __device__ __forceinline__ Tap(int slice, int down, int across) {
        const int first = ONE_TAP ? slice : slice * DEPTH;
        plane = first / across / down * (ONE_TAP ? DEPTH : 1);
        i = first / across % down;
        j = first % across;
    }
    __device__ __forceinline__ void advance(int down, int across) {
        if (ONE_TAP) {
            ++plane;
            return;
        }
        if (++j < across) return;
        j = 0;
        if (++i < down) return;
        i = 0;
        ++plane;
    }
};

// A thread packs one row of one slice; of an input gradient, with its filters' scale. Warps have 32 rows, of slices that
// follow each other: what these read of a row lies side by side in w.
template <class Phase, class Layout = RowsAside>
__device__ __forceinline__ void pack_filter(const Scalar* w, Acc* scratch, const Conv2dShape& shape, int slices,
                                            const Scalar* scale = nullptr) {
    const PackedFilter<Phase, Layout> packed(scratch, shape, slices);
    // Where am I: row m of a tile, consecutive in threadIdx.x.
    const Index thread = Index(blockIdx.x) * THREADS + threadIdx.x, warp = thread / 32;
    const Index rows_of_tiles = warp / slices * 32 + thread % 32, all_tiles = rows_of_tiles / TILE_M;
    const int slice = warp % slices, m = rows_of_tiles % TILE_M;
    const int tile = all_tiles % packed.tiles;
    const int group = all_tiles / packed.tiles % packed.groups;
    const int number = all_tiles / packed.tiles / packed.groups;
    if (number >= packed.phases) return;

    const Phase phase(shape, number);
    const bool exists = tile * TILE_M + m < Phase::rows(shape), tells_offsets = group == 0 && tile == 0 && m == 0;
    Acc* const rows = packed.rows + (all_tiles * slices + slice) * Layout::SIZE;
    Offset* const offsets = packed.offsets + (Index(number) * slices + slice) * DEPTH;
    Tap tap(slice, max(phase.down, 1), max(phase.across, 1));
    for (int d = 0; d < DEPTH; ++d) {
        const bool inside = slice * DEPTH + d < phase.depth;
        Acc element = 0;
        if (exists && inside) element = phase.element(w, scale, group, tile * TILE_M + m, tap);
        Layout::put(rows, d, m, element);
        if (tells_offsets) offsets[d] = inside ? phase.offset(tap) : Offset{0, NOWHERE, 0, 0};
        tap.advance(phase.down, phase.across);
    }
}
