// The image as a tensor map wants it: a launch of its own writes it to scratch memory, channels side by side.
//
//     image[n][row][col][group][channel], 16-bit elements as they are, or TF32 words
//
// A group's channels take whole units of 16 bytes there; those that it does not have are not written, and never read:
// to a tensor map they lie outside. It costs to read the image once and to write as much. What becomes of an element on
// the way costs nothing more: its rounding to TF32, or phi' in a gradient.
//
// kernel_grad turns TF32 words otherwise (grad_planes.cuh), for it sums pixels.
//
// An image that already lies so (CHANNELS_LAST), as tensor maps take it and with nothing to become of its elements, is
// read where it lies: IN_PLACE.
#pragma once
#include "factors.cuh"
#include "windows.cuh"

// A chunk: 128 bytes of channels.
constexpr int WORD_ELEMENTS = IS_TF32 ? 1 : 2, CHUNK_CHANNELS = 32 * WORD_ELEMENTS;
static_assert(DEPTH == CHUNK_CHANNELS, "a slice of the sum is a chunk of channels at one tap");

struct ImageExtents {
    int N, groups, channels, rows, cols;  // channels of a group
    bool in_place;

    __device__ __forceinline__ int chunks() const { return (channels + CHUNK_CHANNELS - 1) / CHUNK_CHANNELS; }
    __device__ __forceinline__ int group_words() const {
        return (channels + 4 * WORD_ELEMENTS - 1) / (4 * WORD_ELEMENTS) * 4;
    }
    // Of scratch memory.
    __device__ __forceinline__ Index words() const {
        return in_place ? 0 : Index(N) * rows * cols * groups * group_words();
    }
};

// Writes a channel's number to its place in a pixel's words.
__device__ __forceinline__ void put_channel(unsigned* words, int channel, Acc number) {
    if constexpr (IS_TF32)
        words[channel] = tf32_word(number * SCALE);
    else
        reinterpret_cast<Scalar*>(words)[channel] = from_acc(number);
}

// A block turns a chunk of the channels of 64 pixels: odd rows of words, so that neither way has bank conflicts.
constexpr int STAGED_PIXELS = 64;
using StagedChunk = unsigned[STAGED_PIXELS][33];

// value(n, channel, row, col): of the image. look(run, first channel, channels, chunk) sees what is turned, zeros where
// there is no pixel or channel; runs of 64 pixels are numbered over all images. What is IN_PLACE is only looked at.
template <class Value, class Look>
__device__ __forceinline__ void stage_image(unsigned* image, const ImageExtents& of, Value value, Look look) {
    constexpr int PIXELS = STAGED_PIXELS;
    __shared__ StagedChunk turned;

    // Where am I: 64 pixels of a plane, consecutive in blockIdx.x.
    const int pixels = of.rows * of.cols, runs = (pixels + PIXELS - 1) / PIXELS;
    const int first = blockIdx.x % runs * PIXELS, chunk = blockIdx.x / runs % of.chunks();
    const int group = blockIdx.x / runs / of.chunks() % of.groups, n = blockIdx.x / runs / of.chunks() / of.groups;
    const int first_channel = chunk * CHUNK_CHANNELS, channels = min(of.channels - first_channel, CHUNK_CHANNELS);

    // A pixel, or where channels lie side by side a channel, is consecutive in threadIdx.x.
    constexpr int ASIDE = CHANNELS_LAST ? CHUNK_CHANNELS : PIXELS, COUNT = PIXELS * CHUNK_CHANNELS / ASIDE;
    static_assert(THREADS % ASIDE == 0, "threads have pixels or channels side by side");
    for (int i = threadIdx.x / ASIDE; i < COUNT; i += THREADS / ASIDE) {
        const int pixel = CHANNELS_LAST ? i : threadIdx.x % ASIDE, own = first + pixel;
        const int channel = CHANNELS_LAST ? threadIdx.x % ASIDE : i;
        const bool exists = channel < channels && own < pixels;
        const Acc number =
            exists ? value(n, group * of.channels + first_channel + channel, own / of.cols, own % of.cols) : Acc(0);
        put_channel(turned[pixel], channel, number);
    }
    __syncthreads();  // all channels of the pixels are there
    look(n * runs + first / PIXELS, group * of.channels + first_channel, channels, turned);
    if (of.in_place) return;

    // A unit of 16 bytes of a pixel: eight of them are consecutive in threadIdx.x.
    const int units = min(of.group_words() / 4 - chunk * 8, 8), unit = threadIdx.x % 8;
    for (int pixel = threadIdx.x / 8; pixel < PIXELS && first + pixel < pixels; pixel += THREADS / 8) {
        if (unit >= units) continue;
        const unsigned* const from = &turned[pixel][unit * 4];
        unsigned* const to = image + ((Index(n) * pixels + first + pixel) * of.groups + group) * of.group_words();
        *reinterpret_cast<uint4*>(to + chunk * 32 + unit * 4) = make_uint4(from[0], from[1], from[2], from[3]);
    }
}

template <class Value>
__device__ __forceinline__ void stage_image(unsigned* image, const ImageExtents& of, Value value) {
    stage_image(image, of, value, [](int, int, int, const StagedChunk&) {});
}
