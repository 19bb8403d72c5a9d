// What kernel_grad/hopper.cu multiplies as TF32: boxes of planes, in which pixels are contiguous.
//
// wgmma wants 32-bit factors contiguous along what is summed, and pixels are. So x and g are turned to planes whose rows
// have the same pitch:
//
//     g[n][k][position]          position = p * pitch + q, and behind a row zeros
//     x[n][phase][c][position]   of each stride-th row and column, those that taps of the phase see
//
// A tap's product is then a correlation along one line, g[position] * x[position + shift], and every tap is a box of x
// that begins elsewhere. The pitch has room for zeros enough that what a shift sees beyond the end of a row is zero, or
// meets a zero of g; above and below the image lies nothing, which the copy engine makes zeros. A block has TAPS_ASIDE
// taps, whichever, each with a box of its own: as its shift is no whole units of 16 bytes, one box cannot serve two.
#pragma once
#include "copies.cuh"
#include "factors.cuh"
#include "windows.cuh"

constexpr int ROW_BYTES = 128, PATTERN = 1024, BOX_PIXELS = 32;  // positions of a row of a box
constexpr int G_BYTES = 64 * ROW_BYTES;                          // of 64 filters
constexpr int X_BOXES = TAPS_ASIDE, X_BYTES = CHUNK_CHANNELS * ROW_BYTES;
static_assert(X_BYTES % PATTERN == 0, "a tap is whole patterns");

// Of the matrices in a slot: products of a box, and how far on the next one begins. Taps follow each other, 8 channels a
// pattern, so that nothing leads to the next columns.
constexpr bool IS_TRANSPOSED = false;
constexpr int STEPS = 4, STEP_BYTES = ROW_BYTES / STEPS, LEADING = 16;

// What taps see along an axis: tap i of pixel p the (p * stride + seen(i))-th row, and that is the (p + shift(i))-th of
// those that its phase has.
struct AxisTaps {
    int size, taps, stride, padding, dilation;

    static __device__ __forceinline__ AxisTaps rows(const Conv2dShape& shape) {
        return {shape.H, shape.R, shape.stride_h, shape.pad_top, shape.dilation_h};
    }
    static __device__ __forceinline__ AxisTaps cols(const Conv2dShape& shape) {
        return {shape.W, shape.S, shape.stride_w, shape.pad_left, shape.dilation_w};
    }
    __device__ __forceinline__ int seen(int i) const { return i * dilation - padding; }
    __device__ __forceinline__ int phases() const { return min(stride, taps); }
    __device__ __forceinline__ int phase(int i) const { return i % stride; }
    // The first row of a phase.
    __device__ __forceinline__ int first(int phase) const {
        const int rest = seen(phase) % stride;
        return rest < 0 ? rest + stride : rest;
    }
    __device__ __forceinline__ int shift(int i) const { return (seen(i) - first(i % stride)) / stride; }
    // Rows of a phase at most.
    __device__ __forceinline__ int of_phase() const { return (size + stride - 1) / stride; }
};

// The positions of a row, in units of 16 bytes: pixels of g or of x, and zeros for what shifts to either side see.
__device__ __forceinline__ int row_pitch(const Conv2dShape& shape) {
    const AxisTaps cols = AxisTaps::cols(shape);
    const int of_g = shape.Q + max(cols.shift(cols.taps - 1), 0), of_x = cols.of_phase() - min(cols.shift(0), 0);
    return (max(of_g, of_x) + 3) / 4 * 4;
}

// The planes that x or g are turned to.
struct TurnedImage {
    int N, groups, channels, pitch;  // channels of a group
    AxisTaps rows, cols;             // g has one tap, which sees its own pixel

    __device__ __forceinline__ int chunks() const { return (channels + CHUNK_CHANNELS - 1) / CHUNK_CHANNELS; }
    __device__ __forceinline__ int phases() const { return rows.phases() * cols.phases(); }
    __device__ __forceinline__ int positions() const { return rows.of_phase() * pitch; }
    __device__ __forceinline__ Index words() const {
        return Index(N) * phases() * groups * channels * positions();
    }
};
__device__ __forceinline__ TurnedImage turned_x(const Conv2dShape& shape) {
    return {shape.N, shape.groups, shape.group_channels(), row_pitch(shape), AxisTaps::rows(shape), AxisTaps::cols(shape)};
}
__device__ __forceinline__ TurnedImage turned_g(const Conv2dShape& shape) {
    return {shape.N, shape.groups, shape.group_filters(), row_pitch(shape), {shape.P, 1, 1, 0, 1}, {shape.Q, 1, 1, 0, 1}};
}

// A block turns 64 positions of 32 planes: odd rows of words, so that neither way has bank conflicts.
constexpr int STAGED_PIXELS = 64, STAGED_CHANNELS = 32;
using StagedChunk = float[STAGED_CHANNELS][STAGED_PIXELS + 1];
__device__ __forceinline__ Acc staged(const StagedChunk& chunk, int pixel, int channel) { return chunk[channel][pixel]; }

// value(n, channel, row, col): of the image. look(run, first channel, channels, chunk) sees what is turned before it is
// rounded, zeros where there is no pixel or channel; runs of 64 positions are numbered over all images and phases.
template <class Value, class Look>
__device__ __forceinline__ void stage_image(unsigned* planes, const TurnedImage& of, Value value, Look look) {
    constexpr int PIXELS = STAGED_PIXELS, CHANNELS = STAGED_CHANNELS;
    __shared__ StagedChunk turned;

    // Where am I: 64 positions of a plane, consecutive in blockIdx.x.
    int number = blockIdx.x;
    const auto next = [&](int count) {
        const int at = number % count;
        number /= count;
        return at;
    };
    const int positions = of.positions(), runs = (positions + PIXELS - 1) / PIXELS;
    const int run = next(runs), first_channel = next((of.channels + CHANNELS - 1) / CHANNELS) * CHANNELS;
    const int group = next(of.groups), phase = next(of.phases()), n = number;
    const int first = run * PIXELS, channels = min(of.channels - first_channel, CHANNELS);
    const int first_row = of.rows.first(phase / of.cols.phases()), first_col = of.cols.first(phase % of.cols.phases());

    // A position, or where channels lie side by side a channel, is consecutive in threadIdx.x.
    constexpr int ASIDE = CHANNELS_LAST ? CHANNELS : PIXELS, COUNT = PIXELS * CHANNELS / ASIDE;
    static_assert(THREADS % ASIDE == 0, "threads have positions or channels side by side");
    for (int i = threadIdx.x / ASIDE; i < COUNT; i += THREADS / ASIDE) {
        const int own = CHANNELS_LAST ? i : threadIdx.x % ASIDE, channel = CHANNELS_LAST ? threadIdx.x % ASIDE : i;
        const int row = (first + own) / of.pitch * of.rows.stride + first_row;
        const int col = (first + own) % of.pitch * of.cols.stride + first_col;
        const bool exists = channel < channels && row < of.rows.size && col < of.cols.size;
        turned[channel][own] = exists ? value(n, group * of.channels + first_channel + channel, row, col) : Acc(0);
    }
    __syncthreads();  // all positions of the planes are there
    look((n * of.phases() + phase) * runs + run, group * of.channels + first_channel, channels, turned);

    // Four positions of a plane: 16 of such units are consecutive in threadIdx.x.
    const int unit = threadIdx.x % 16 * 4;
    if (first + unit >= positions) return;
    for (int channel = threadIdx.x / 16; channel < channels; channel += THREADS / 16) {
        const auto word = [&](int i) { return tf32_word(turned[channel][unit + i] * SCALE); };
        const Index plane = ((Index(n) * of.phases() + phase) * of.groups + group) * of.channels + first_channel + channel;
        *reinterpret_cast<uint4*>(planes + plane * positions + first + unit) =
            make_uint4(word(0), word(1), word(2), word(3));
    }
}

template <class Value>
__device__ __forceinline__ void stage_image(unsigned* planes, const TurnedImage& of, Value value) {
    stage_image(planes, of, value, [](int, int, int, const StagedChunk&) {});
}

// The number-th TAPS_ASIDE taps, which are numbered r * S + s; those from R * S on are none.
struct Taps {
    int first;

    static __device__ __forceinline__ int count(const Conv2dShape& shape) {
        return (shape.R * shape.S + TAPS_ASIDE - 1) / TAPS_ASIDE;
    }
    __device__ __forceinline__ Taps(int number, const Conv2dShape&) : first(number * TAPS_ASIDE) {}
    __device__ __forceinline__ int tap(int aside, const Conv2dShape&) const { return first + aside; }
};

// A box of g: its image, and where it begins.
struct PixelBox {
    int n, position;

    static __device__ __forceinline__ int of_image(const Conv2dShape& shape) {
        return (shape.P * row_pitch(shape) + BOX_PIXELS - 1) / BOX_PIXELS;
    }
    static __device__ __forceinline__ int count(const Conv2dShape& shape) { return shape.N * of_image(shape); }
    __device__ __forceinline__ PixelBox(int number, const Conv2dShape& shape)
        : n(number / of_image(shape)), position(number % of_image(shape) * BOX_PIXELS) {}
};

// What one of ASKING threads asks for: the first one 128 filters of g, each the positions of x that its tap sees.
constexpr int ASKING = X_BOXES;
struct Asked {
    int own, c, k, group, phase, shift;

    __device__ __forceinline__ Asked(int own, const Conv2dShape& shape, const Taps& taps, int first_c, int first_k,
                                     int group)
        : own(own), c(first_c), k(first_k), group(group) {
        const AxisTaps rows = AxisTaps::rows(shape), cols = AxisTaps::cols(shape);
        const int tap = min(taps.first + own, rows.taps * cols.taps - 1), r = tap / cols.taps, s = tap % cols.taps;
        phase = rows.phase(r) * cols.phases() + cols.phase(s);
        shift = rows.shift(r) * row_pitch(shape) + cols.shift(s);
    }
    __device__ __forceinline__ void ask(char* g, char* x, const TensorMap& g_map, const TensorMap& x_map,
                                        Mbarrier& full, int number, const Conv2dShape& shape) const {
        const PixelBox at(number, shape);
        if (own == 0) copy_box(g, g_map, full, at.position, k, group, 0, at.n);
        copy_box(x + own * X_BYTES, x_map, full, at.position + shift, c, group, phase, at.n);
    }
};
static_assert(ASKING <= 32, "the lanes of a warp ask");
