// The matrix product of forward and input_grad on sm_90: out[m][pixel] = sum over channels and taps.
//
// Rows are filters (or channels), columns are pixels of a tile of TILE_P x TILE_Q pixels of TILE_IMAGES images. A step of
// the sum is a chunk of channels, 128 bytes, at one tap. Rows of the product want 64 filters, so that 256 columns are
// read for each of them: of the two factors shared memory gives the smaller one more often.
//
//     warp 0       asks for boxes of the image: the pixels that taps of a column see, all TAPS_DOWN of them at once
//     warp 1       asks for the filter, a tap at a time, packed as shared memory has it
//     warps 4-11   two warpgroups multiply: 64 rows, and all columns, or half of them where a tile has 64 rows
//
// In a box rows of pixels come one after the other, images within a row. So a tap of another row is a shift by whole
// patterns of a swizzle, which a descriptor can say. Copies and products meet in two rings of slots; a block does tiles
// in turn, and the copies of the next one are under way while the sums of the last are written.
#pragma once
#include "../channel_results.cuh"
#include "copies.cuh"
#include "packed_filter.cuh"
#include "staged_image.cuh"
#include "vector.cuh"
#include "warpgroup.cuh"
#include "window_reader.cuh"

extern __shared__ __align__(16) unsigned char shared[];

constexpr int TILE_COLUMNS = TILE_P * TILE_Q * TILE_IMAGES;
constexpr int PATTERN = 1024, ROW_BYTES = 128;
constexpr int BOX_ROW_BYTES = TILE_IMAGES * TILE_Q * ROW_BYTES, BOX_BYTES = BOX_ROWS * BOX_ROW_BYTES;
constexpr int TAP_BYTES = TILE_M * ROW_BYTES;
constexpr int ROW_GROUPS = TILE_M / 64, COLUMN_GROUPS = 2 / ROW_GROUPS, GROUP_COLUMNS = TILE_COLUMNS / COLUMN_GROUPS;
constexpr int MULTIPLYING_WARPS = 8, MOVING_REGISTERS = 40, MULTIPLYING_REGISTERS = 232;
static_assert(THREADS == 384, "a warpgroup of which two warps ask for copies, and two that multiply");
static_assert(TILE_M == 64 || TILE_M == 128, "each of two warpgroups has 64 rows");
static_assert(BOX_ROW_BYTES % PATTERN == 0, "a tap of another row is a shift by whole patterns");
static_assert(!LONG_SUMS || GROUP_COLUMNS <= 128, "registers hold totals beside 64 sums");
static_assert(RUN_STEPS % DEPTH == 0, "a run is made of whole chunks");
static_assert(TAPS_DOWN > 1 || BOX_ROWS == TILE_P, "a box without a halo is the tile");

using BoxRing = Ring<BOXES, FOR_EMPTY_BOX, FOR_BOX>;
using TapRing = Ring<TAPS, FOR_EMPTY_TAP, FOR_TAP>;
struct Rings {
    BoxRing boxes;
    TapRing taps;
};

// The packed filter: [phase][group][tile of TILE_M rows][chunk][column of taps][tap of the column][TAP_BYTES].
template <class Phase>
struct PackedTaps {
    int groups, tiles, taps;  // tiles of a group; taps of all chunks, of the phase that has most
    char* bytes;

    __device__ __forceinline__ PackedTaps(void* bytes, const Conv2dShape& shape, int taps)
        : groups(shape.groups), tiles((Phase::rows(shape) + TILE_M - 1) / TILE_M), taps(taps),
          bytes(static_cast<char*>(bytes)) {}
    __device__ __forceinline__ char* of(int phase, int group, int tile) const {
        return bytes + ((Index(phase) * groups + group) * tiles + tile) * taps * TAP_BYTES;
    }
};

// A thread packs one row of one tap: a chunk of channels, zeros where there are none, swizzled as in shared memory.
template <class Phase>
__device__ __forceinline__ void pack_taps(const Scalar* w, const PackedTaps<Phase>& packed, const Conv2dShape& shape,
                                          const ImageExtents& image) {
    const Index number = (Index(blockIdx.x) * THREADS + threadIdx.x) / TILE_M;
    const int m = (blockIdx.x * THREADS + threadIdx.x) % TILE_M;
    const int tap = number % packed.taps, tile = number / packed.taps % packed.tiles;
    const int group = number / packed.taps / packed.tiles % packed.groups;
    const int phase_number = number / packed.taps / packed.tiles / packed.groups;
    if (phase_number >= Phase::count(shape)) return;
    const Phase phase(shape, phase_number);
    const int taps = phase.down * phase.across;
    if (taps == 0 || tap >= taps * image.chunks()) return;

    Tap at(0, 1, 1);
    at.i = tap % phase.down, at.j = tap / phase.down % phase.across;
    const int first = tap / taps * CHUNK_CHANNELS, row = tile * TILE_M + m;
    uint4* const to = reinterpret_cast<uint4*>(packed.of(phase_number, group, tile) + Index(tap) * TAP_BYTES) + m * 8;
    for (int unit = 0; unit < 8; ++unit) {
        alignas(16) unsigned words[4];
        for (int channel = 0; channel < 4 * WORD_ELEMENTS; ++channel) {
            at.plane = first + unit * 4 * WORD_ELEMENTS + channel;
            const bool exists = row < Phase::rows(shape) && at.plane < image.channels;
            put_channel(words, channel, exists ? phase.element(w, nullptr, group, row, at) : Acc(0));
        }
        to[unit ^ m % 8] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

// A tile of the product, of the pixels of a phase.
template <class Phase>
struct BoxTile {
    Tile tile;
    PixelGrid grid;
    int n, p, q;  // its first pixel

    // The number-th, in an order in which neighbours share their pixels. No phase has more pixels than the first.
    __device__ __forceinline__ BoxTile(int number, const Conv2dShape& shape, const PackedTaps<Phase>& packed,
                                       const PixelGrid& most) {
        const int across = (most.Q + TILE_Q - 1) / TILE_Q, down = (most.P + TILE_P - 1) / TILE_P;
        const int deep = (most.N + TILE_IMAGES - 1) / TILE_IMAGES;
        tile.number = number % packed.tiles, number /= packed.tiles;
        q = number % across * TILE_Q, number /= across;
        p = number % down * TILE_P, number /= down;
        n = number % deep * TILE_IMAGES, number /= deep;
        tile.group = number % packed.groups, tile.phase = number / packed.groups;
        tile.first_m = tile.number * TILE_M, tile.first_pixel = 0;
        grid = most;
    }
    __device__ __forceinline__ bool is_empty(const PixelGrid& of_phase) const {
        return p >= of_phase.P || q >= of_phase.Q;
    }
    // The pixel of a column; it may lie outside the grid.
    __device__ __forceinline__ Pixel at(int column) const {
        const int in_row = column % (TILE_IMAGES * TILE_Q);
        return {n + in_row / TILE_Q, p + column / (TILE_IMAGES * TILE_Q), q + in_row % TILE_Q};
    }
    __device__ __forceinline__ bool has(const Pixel& pixel) const {
        return pixel.n < grid.N && pixel.p < grid.P && pixel.q < grid.Q;
    }
};

// A thread's sums: of two rows, 8 apart, in each eight columns two neighbours.
struct BoxSums {
    const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    const int first_row = group % ROW_GROUPS * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
    const int first_column = group / ROW_GROUPS * GROUP_COLUMNS, own_column = lane % 4 * 2;
    WarpgroupSums<GROUP_COLUMNS> product;
    float totals[LONG_SUMS ? GROUP_COLUMNS / 2 : 1];

    __device__ __forceinline__ Acc sum(int eight, int i, int e) const {
        return unscaled(product.sums[eight * 4 + i * 2 + e]);
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (float& sum : product.sums) sum = 0;
        if constexpr (LONG_SUMS)
#pragma unroll
            for (float& total : totals) total = 0;
    }
    // Adds a run's sums to the totals; they start again, or after the last run are the totals.
    __device__ __forceinline__ void end_run(bool is_last) {
        if constexpr (LONG_SUMS)
#pragma unroll
            for (int i = 0; i < GROUP_COLUMNS / 2; ++i) {
                totals[i] += product.sums[i];
                product.sums[i] = is_last ? totals[i] : 0;
            }
    }
};

// Two neighbouring pixels' 16-bit results as one word.
template <class Element = Scalar>
__device__ __forceinline__ unsigned pair_of(const Acc (&values)[2]) {
    return pair_word(Element(values[0]), Element(values[1]));
}

// Stores a thread's results of two neighbours in COLUMNS columns of a row of pixels, of which so many exist from `to` on.
template <int COLUMNS>
__device__ __forceinline__ void store_row(Scalar* to, int pixels, const Acc (&values)[COLUMNS / 8][2]) {
    if constexpr (PIXELS_ASIDE == 4) {
        // Half of a sector each time. So neighbouring threads exchange: one has four pixels of these eight then, the
        // other four of the next.
        const int is_odd = threadIdx.x % 2;
#pragma unroll
        for (int eight = 0; eight < COLUMNS / 8; eight += 2) {
            const unsigned pairs[] = {pair_of(values[eight]), pair_of(values[eight + 1])};
            const unsigned theirs = __shfl_xor_sync(0xffffffff, is_odd ? pairs[0] : pairs[1], 1);
            const int at = eight * 8 + is_odd * 6;  // 8 further on, and 2 back
            if (at < pixels)
                *reinterpret_cast<uint2*>(to + at) = is_odd ? make_uint2(theirs, pairs[1]) : make_uint2(pairs[0], theirs);
        }
    } else {
#pragma unroll
        for (int eight = 0; eight < COLUMNS / 8; ++eight)
            if constexpr (PIXELS_ASIDE == 2) {
                if (eight * 8 < pixels) store_vector<2>(to + eight * 8, values[eight]);
            } else {
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (eight * 8 + e < pixels) to[(eight * 8 + e) * PIXEL_STEP] = from_acc(values[eight][e]);
            }
    }
}
static_assert(PIXELS_ASIDE == 1 || PIXEL_STEP == 1, "what is stored at once lies side by side");
static_assert(PIXELS_ASIDE < 4 || (sizeof(Scalar) == 2 && TILE_Q >= 16), "pairs of two eights of a row are exchanged");

// Writes the sums of a tile. Results (outputs.cuh, input_grads.cuh) know where a pixel's result for row 0 lies, how many
// rows there are and how far apart, what becomes of a sum, and how a result is formed anew of pixels alone: the padding
// is none, but was multiplied as zeros. Pixels side by side in a row of the tile lie PIXEL_STEP apart, or where channels
// lie side by side so many pixels. What is returned is NaN if a sum is no number.
constexpr int BOX_RUN = TILE_Q < GROUP_COLUMNS ? TILE_Q : GROUP_COLUMNS;  // columns of one row of pixels

template <class Phase, class Results>
__device__ __forceinline__ float write_rows(const BoxSums& sums, const BoxTile<Phase>& tile, Scalar* out,
                                            const Results& results) {
    float probe = 0;
#pragma unroll
    for (int run = 0; run < GROUP_COLUMNS; run += BOX_RUN) {
        const Pixel first = tile.at(sums.first_column + run + sums.own_column);
        if (first.n >= tile.grid.N || first.p >= tile.grid.P) continue;  // the whole warp
        const Index at = results.at(first);
        const int pixels = tile.grid.Q - first.q;  // from the thread's first one on
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int m = tile.tile.first_m + sums.first_row + i * 8, last = results.rows - 1;
            Acc values[BOX_RUN / 8][2];
#pragma unroll
            for (int j = 0; j < BOX_RUN / 8 * 2; ++j) {
                const Acc sum = sums.sum(run / 8 + j / 2, i, j % 2);
                probe = fmaf(sum, 0.0f, probe);
                const int pixel = j / 2 * 8 + j % 2;
                values[j / 2][j % 2] = results.result(min(m, last), sum, pixel < pixels ? at + pixel * PIXEL_STEP : -1);
            }
            store_row<BOX_RUN>(out + at + m * results.row_pitch, m <= last ? pixels : 0, values);
        }
    }
    return probe;
}

template <class Phase, class Results>
__device__ __forceinline__ float write_pixels(const BoxSums& sums, const BoxTile<Phase>& tile, Scalar* out,
                                              const Results& results) {
    const int own_row = sums.lane / 4, first_m = tile.tile.first_m + sums.first_row - own_row;
    const Index pitch = results.at({0, 0, 1}) - results.at({0, 0, 0});
    float probe = 0;
#pragma unroll
    for (int run = 0; run < GROUP_COLUMNS; run += BOX_RUN) {
        const Pixel first = tile.at(sums.first_column + run);
        if (first.n >= tile.grid.N || first.p >= tile.grid.P) continue;  // the whole warp
        const Index at = results.at(first);
        const int pixels = tile.grid.Q - first.q;
#pragma unroll
        for (int eight = 0; eight < BOX_RUN; eight += 8) {
            Acc values[2][2];
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const Acc sum = sums.sum((run + eight) / 8, i, e);
                    probe = fmaf(sum, 0.0f, probe);
                    const int m = min(first_m + own_row + i * 8, results.rows - 1), pixel = eight + sums.own_column + e;
                    values[i][e] = results.result(m, sum, pixel < pixels ? at + pixel * pitch : -1);
                }
            Scalar* to[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int pixel = eight + sums.own_column + e;
                to[e] = pixel < pixels ? out + at + pixel * pitch + first_m : nullptr;
            }
            store_channels(values, to, results.rows - first_m);
        }
    }
    return probe;
}

template <class Phase, class Results>
__device__ __forceinline__ void write_box(const BoxSums& sums, const BoxTile<Phase>& tile, Scalar* out,
                                          const Results& results) {
    float probe;
    if constexpr (CHANNELS_LAST)
        probe = write_pixels(sums, tile, out, results);
    else
        probe = write_rows(sums, tile, out, results);
#pragma unroll 1
    for (int i = 0; isnan(probe) && i < GROUP_COLUMNS / 2; ++i) {
        const int m = tile.tile.first_m + sums.first_row + i % 2 * 8;
        const Pixel pixel = tile.at(sums.first_column + i / 4 * 8 + sums.own_column + i / 2 % 2);
        if (m >= results.rows || !tile.has(pixel)) continue;
        Scalar& element = out[results.at(pixel) + m * (CHANNELS_LAST ? 1 : results.row_pitch)];
        if (isnan(to_acc(element))) results.form_anew(element, m, pixel);
    }
}

// Multiplies all tiles; write(tile, phase, sums) gets the sums of each.
template <class Phase, class Write>
__device__ __forceinline__ void multiply_boxes(const TensorMap& map, WaitNote* note,
                                               const PackedTaps<Phase>& packed, const Conv2dShape& shape,
                                               const ImageExtents& image, int tiles, Write write) {
    // Shared memory: slots of boxes, slots of taps, each at a multiple of a pattern, and the barriers of both.
    char* const memory = reinterpret_cast<char*>(shared) + (0 - __cvta_generic_to_shared(shared)) % PATTERN;
    char* const boxes = memory;
    char* const taps = boxes + BOXES * BOX_BYTES;
    Rings& rings = *reinterpret_cast<Rings*>(taps + TAPS * TAP_BYTES);
    const PixelGrid most = Phase(shape, 0).grid;
    const int chunks = image.chunks();

    if (threadIdx.x == 0) {
        rings.boxes.init(MULTIPLYING_WARPS);
        rings.taps.init(MULTIPLYING_WARPS);
        fence_mbarrier_init();
    }
    __syncthreads();  // the barriers are there

    if (threadIdx.x < 128) {
        give_registers<MOVING_REGISTERS>();
        if (threadIdx.x == 0) {
            prefetch(map);
            BoxRing::Turn turn;
            for (int number = blockIdx.x; number < tiles; number += gridDim.x) {
                const BoxTile<Phase> at(number, shape, packed, most);
                const Phase phase(shape, at.tile.phase);
                if (at.is_empty(phase.grid)) continue;
                // The first of a box's taps is the one that sees the highest row: where steps go up, the last.
                const SeenPixels rows = phase.seen_rows(), cols = phase.seen_cols();
                const int box_taps = TAPS_DOWN > 1 ? min(phase.down, 1) : phase.down;
                for (int chunk = 0; chunk < chunks; ++chunk)
                    for (int j = 0; j < phase.across; ++j)
                        for (int i = 0; i < box_taps; ++i) {
                            const int row = TAPS_DOWN > 1 ? rows.lowest(phase.down) : rows.first + i * rows.step;
                            rings.boxes.wait_until_empty(turn, note);
                            rings.boxes.full[turn.slot].arrive_and_expect(BOX_BYTES);
                            copy_box(boxes + turn.slot * BOX_BYTES, map, rings.boxes.full[turn.slot],
                                     chunk * CHUNK_CHANNELS, at.tile.group, at.q * STRIDE_W + cols.first + j * cols.step,
                                     at.n, at.p * STRIDE_H + row);
                            turn.advance();
                        }
            }
        }
        if (threadIdx.x == 32) {
            TapRing::Turn turn;
            for (int number = blockIdx.x; number < tiles; number += gridDim.x) {
                const BoxTile<Phase> at(number, shape, packed, most);
                const Phase phase(shape, at.tile.phase);
                if (at.is_empty(phase.grid)) continue;
                const char* from = packed.of(at.tile.phase, at.tile.group, at.tile.number);
                for (int left = chunks * phase.across * phase.down; left > 0; --left, from += TAP_BYTES) {
                    rings.taps.wait_until_empty(turn, note);
                    rings.taps.full[turn.slot].arrive_and_expect(TAP_BYTES);
                    copy_bytes(taps + turn.slot * TAP_BYTES, from, TAP_BYTES, rings.taps.full[turn.slot]);
                    turn.advance();
                }
            }
        }
        return;
    }

    take_registers<MULTIPLYING_REGISTERS>();
    BoxSums sums;
    const int first_a = (sums.group % ROW_GROUPS) * 64 * ROW_BYTES;
    const int first_b = sums.group / ROW_GROUPS * GROUP_COLUMNS * ROW_BYTES;
    BoxRing::Turn box;
    TapRing::Turn tap;
    for (int number = blockIdx.x; number < tiles; number += gridDim.x) {
        BoxTile<Phase> at(number, shape, packed, most);
        const Phase phase(shape, at.tile.phase);
        if (at.is_empty(phase.grid)) continue;
        at.grid = phase.grid;
        const SeenPixels rows = phase.seen_rows();
        const int columns = phase.down ? chunks * phase.across : 0;  // of taps
        if (columns == 0 || LONG_SUMS) sums.clear();

        // Slots that are read by products under way, to be given back when these have ended.
        Mbarrier *read_box = nullptr, *read_tap = nullptr;
        int run = 0;
        bool accumulate = LONG_SUMS;
#pragma unroll 1
        for (int column = 0; column < columns; ++column) {
            int shift = TAPS_DOWN > 1 ? rows.above(phase.down) * BOX_ROW_BYTES : 0;
#pragma unroll 1
            for (int i = 0; i < phase.down; ++i) {
                if (TAPS_DOWN == 1 || i == 0) rings.boxes.wait_until_full(box, note);
                rings.taps.wait_until_full(tap, note);
                const Matrix a(taps + tap.slot * TAP_BYTES + first_a, PATTERN);
                const Matrix b(boxes + box.slot * BOX_BYTES + first_b + shift, PATTERN);
                sums.product.begin();
#pragma unroll
                for (int step = 0; step < K_STEPS; ++step, accumulate = true)
                    sums.product.add(a + step * 32, b + step * 32, accumulate);
                sums.product.commit();
                sums.product.wait<1>();  // those of the tap before have ended
                if (sums.lane == 0) {
                    if (read_tap) read_tap->arrive();
                    if (read_box) read_box->arrive();
                }
                read_tap = &rings.taps.empty[tap.slot], read_box = nullptr;
                tap.advance();
                if (TAPS_DOWN == 1 || i == phase.down - 1) {
                    read_box = &rings.boxes.empty[box.slot];
                    box.advance();
                }
                if (TAPS_DOWN > 1) shift += rows.step * BOX_ROW_BYTES;
                if (LONG_SUMS && (run += DEPTH) == RUN_STEPS) {
                    sums.product.wait<0>();
                    sums.end_run(false);
                    run = 0;
                }
            }
        }
        sums.product.wait<0>();
        if (sums.lane == 0) {
            if (read_tap) read_tap->arrive();
            if (read_box) read_box->arrive();
        }
        sums.end_run(true);
        write(at, phase, sums);
    }
}
