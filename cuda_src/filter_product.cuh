// What the implicit_gemm of forward and of input_grad share: both multiply a filter by the windows of pixels,
//     out[m][pixel] = sum_d filter[d][m] * window element d of the pixel
//
// A launch of its own packs the filter into scratch memory, once a call: there the TILE_M rows of a tile are side by
// side, as a slice holds them, where in w they lie a whole filter apart; and it ends with zeros where tile and slice
// end. Before it stands the table of the steps, so that the product's loop does no index arithmetic. A phase is a set
// of pixels that see the same steps.
#pragma once
#include "gather.cuh"
#include "matrix_product.cuh"

using Product = MatrixProduct<Acc, Lane, DEPTH, TILE_N / LANES, REG_N, 0>;

// What a block computes: rows first_m on of a group, at pixels first_pixel on of a phase.
struct Place {
    int tile, group, phase, first_m, first_pixel;
};

struct PackedFilter {
    int phases, groups, tiles, slices;  // tiles of a group, slices of the longest phase
    Step* steps;                        // [phase][slices * DEPTH]
    Acc* rows;                          // [phase][group][tile][slices * DEPTH][TILE_M]

    __device__ __forceinline__ PackedFilter(Acc* scratch, int phases, int groups, int group_rows, int slices)
        : phases(phases), groups(groups), tiles((group_rows + TILE_M - 1) / TILE_M), slices(slices),
          steps(reinterpret_cast<Step*>(scratch)),
          rows(reinterpret_cast<Acc*>(steps + Index(phases) * slices * DEPTH)) {}

    // Consecutive blocks share their pixels.
    __device__ __forceinline__ Place place_of_block(int pixels) const {
        const int pixel_tiles = (pixels + TILE_N - 1) / TILE_N, tile = blockIdx.x % tiles, rest = blockIdx.x / tiles;
        return {tile, rest / pixel_tiles % groups, rest / pixel_tiles / groups, tile * TILE_M,
                rest % pixel_tiles * TILE_N};
    }
    // As words of 16 bytes, one load each.
    __device__ __forceinline__ const int4* steps_of(int phase) const {
        return reinterpret_cast<const int4*>(steps + Index(phase) * slices * DEPTH);
    }
    __device__ __forceinline__ const Piece<Acc>* tile(const Place& place) const {
        const Index before = (Index(place.phase) * groups + place.group) * tiles + place.tile;
        return reinterpret_cast<const Piece<Acc>*>(rows + before * slices * DEPTH * TILE_M);
    }
};

// Where a step of a phase's sum lies in the filter: the plane, and the i-th and j-th of the phase's rows and columns
// of taps. With ONE_TAP a slice is DEPTH planes at one tap, and only its first step needs looking up; else the planes
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

// A thread packs one row of one slice. phase_of(number) knows the phase: how many rows and columns of taps it has
// (`down`, `across`), `depth` (the steps of its sum), step(tap) and value(group, m, tap).
template <class PhaseOf>
__device__ __forceinline__ void pack_filter(const PackedFilter& packed, int group_rows, PhaseOf&& phase_of) {
    // Where am I: row m of a tile, consecutive in threadIdx.x.
    const Index slice_number = (Index(blockIdx.x) * THREADS + threadIdx.x) / TILE_M;
    const int m = (blockIdx.x * THREADS + threadIdx.x) % TILE_M;
    const int slice = slice_number % packed.slices;
    const int tile = slice_number / packed.slices % packed.tiles;
    const int group = slice_number / packed.slices / packed.tiles % packed.groups;
    const int number = slice_number / packed.slices / packed.tiles / packed.groups;
    if (number >= packed.phases) return;

    const auto phase = phase_of(number);
    const bool exists = tile * TILE_M + m < group_rows, describes = group == 0 && tile == 0 && m == 0;
    Acc* const row = packed.rows + slice_number * DEPTH * TILE_M + m;
    Step* const steps = packed.steps + (Index(number) * packed.slices + slice) * DEPTH;
    Tap tap(slice, max(phase.down, 1), max(phase.across, 1));
    for (int d = 0; d < DEPTH; ++d) {
        const bool inside = slice * DEPTH + d < phase.depth;
        row[d * TILE_M] = exists && inside ? phase.value(group, tile * TILE_M + m, tap) : Acc(0);
        if (describes) steps[d] = inside ? phase.step(tap) : Step{0, NOWHERE, 0, 0};
        tap.advance(phase.down, phase.across);
    }
}

// Brings a slice of the filter's tile, and one of the windows of TILE_N pixels.
template <class Source>
struct Loader {
    static constexpr int PIECES = DEPTH * TILE_M / PIECE<Acc>, OWN_PIECES = PIECES / THREADS;
    static constexpr int COLUMNS = TILE_N / (LANES * PIXELS), AT_ONCE = THREADS / COLUMNS, OWN_STEPS = DEPTH / AT_ONCE;
    static_assert(PIECES % THREADS == 0, "the threads share a slice of the filter evenly");
    static_assert(THREADS % COLUMNS == 0 && DEPTH % AT_ONCE == 0, "a thread has one column and several steps");

    const Piece<Acc>* filter;  // this thread's part of the first slice
    const int4* steps;
    Source source;
    Corners corners;
    Piece<Acc> pieces[OWN_PIECES];
    struct alignas(sizeof(Lane) * PIXELS) Elements {
        Lane lanes[PIXELS];
    } elements[OWN_STEPS];

    // Pixels are consecutive in threadIdx.x. For corner_of see find_corners.
    template <class CornerOf>
    __device__ __forceinline__ Loader(const PackedFilter& packed, const Source& source_, const Place& place,
                                      const PixelGrid& grid, CornerOf&& corner_of)
        : filter(packed.tile(place) + threadIdx.x), steps(packed.steps_of(place.phase) + threadIdx.x / COLUMNS),
          source(source_) {
        const Pixels pixels(place.first_pixel + int(threadIdx.x) % COLUMNS * (LANES * PIXELS), grid);
        find_corners(corners, source, pixels, grid, corner_of);
    }

    __device__ __forceinline__ void fetch(int slice) {
#pragma unroll
        for (int i = 0; i < OWN_PIECES; ++i) pieces[i] = filter[Index(slice) * PIECES + i * THREADS];
        Step step;
        IntsTrue inside;
#pragma unroll
        for (int i = 0; i < OWN_STEPS; ++i) {
            if (i == 0 || !ONE_TAP) {
                const int4 words = steps[slice * DEPTH + i * AT_ONCE];
                step = {words.x, words.y, words.z, words.w};
                inside = look_at<true>(source, corners, step);
            }
            source.template read<PIXELS>(elements[i].lanes, corners, step, ONE_TAP ? i * AT_ONCE : 0, inside);
        }
    }
    __device__ __forceinline__ void put(Product::Slice& slice) const {
        Piece<Acc>* const rows = &slice.a[0][0];
#pragma unroll
        for (int i = 0; i < OWN_PIECES; ++i) rows[threadIdx.x + i * THREADS] = pieces[i];
#pragma unroll
        for (int i = 0; i < OWN_STEPS; ++i) {
            Piece<Lane>* const step = slice.b[threadIdx.x / COLUMNS + i * AT_ONCE];
            reinterpret_cast<Elements*>(step)[threadIdx.x % COLUMNS] = elements[i];
        }
    }
};

// Writes the product. position(n, p, q) is where a pixel's result for row 0 lies in out; the rows are row_pitch apart.
// finish(m, sums) makes results of sums.
template <class Position, class Finish>
__device__ __forceinline__ void write_product(const Product& product, const Place& place, const PixelGrid& grid,
                                              Scalar* out, int rows, Index row_pitch, Position&& position,
                                              Finish&& finish) {
    constexpr int LANES_AT_ONCE = PIECE<Lane>, AT_ONCE = LANES_AT_ONCE * LANES;
    unroll<REG_N / LANES_AT_ONCE>([&](auto piece) INLINED {
        const int first = place.first_pixel + product.column(piece * LANES_AT_ONCE) * LANES;
        Index at[AT_ONCE];
        unroll<LANES_AT_ONCE>([&](auto j) INLINED {
            const Pixels pixels(first + j * LANES, grid);
            for (int i = 0; i < LANES; ++i) {
                const int n = element(pixels.n, i);
                at[j * LANES + i] = n < grid.N ? position(n, element(pixels.p, i), element(pixels.q, i)) : -1;
            }
        });
        const bool adjacent = at[AT_ONCE - 1] - at[0] == AT_ONCE - 1;
        unroll<REG_M>([&](auto i) INLINED {
            const int m = place.first_m + product.row(i);
            if (m >= rows) return;
            Scalar* const row = out + m * row_pitch;
            Lane results[LANES_AT_ONCE];
            unroll<LANES_AT_ONCE>([&](auto j) INLINED {
                results[j] = finish(m, product.sums[i][piece * LANES_AT_ONCE + j]);
            });
            if (adjacent && can_store<AT_ONCE>(row + at[0]))
                store<AT_ONCE>(row + at[0], results);
            else
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j)
                    if (at[j] >= 0) row[at[j]] = from_acc(element(results[j / LANES], j % LANES));
        });
    });
}
