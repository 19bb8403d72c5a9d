// What the rungs that work on rows of images read, a Lane at a time, at any address: an image, or g.
#pragma once
#include "cpu/lane.cuh"

// One channel of one image ...
struct Plane {
    const Scalar* data;
    int rows, cols;

    __forceinline__ Plane(const Scalar* image, Index plane, int rows, int cols)
        : data(image + plane * rows * cols), rows(rows), cols(cols) {}

    __forceinline__ void read(Lane& lane, int row, int col) const { load(lane, data + Index(row) * cols + col); }
    // What is left to do once N lanes of a row are read, from column `first` on.
    template <int N>
    __forceinline__ void finish(Lane (&)[N], int row, int first) const {}
    __forceinline__ Acc at(int row, int col) const { return to_acc(data[Index(row) * cols + col]); }
};

// ... or of g = dy * phi'(s), which is formed as it is read and never stored.
struct GradPlane {
    static constexpr bool FROM_MASK = std::is_same<Saved, MaskByte>::value;
    const Scalar* dy;
    const Saved* saved;
    int rows, cols, saved_pitch;

    __forceinline__ GradPlane(const Scalar* dy_, const Saved* saved_, Index plane,
                              const Conv2dShape& shape)
        : dy(dy_ + plane * shape.P * shape.Q), rows(shape.P), cols(shape.Q) {
        saved_pitch = FROM_MASK ? mask_row_bytes(shape) : shape.Q;
        saved = ACTIVATION == IDENTITY ? nullptr : saved_ + plane * rows * saved_pitch;
    }

    __forceinline__ void read(Lane& lane, int row, int col) const {
        load(lane, dy + Index(row) * cols + col);
        if constexpr (ACTIVATION != IDENTITY && !FROM_MASK) {
            Lane y;
            load(y, reinterpret_cast<const Scalar*>(saved) + Index(row) * saved_pitch + col);
            lane = times_derivative(lane, y);
        }
    }
    // A mask is read once for all N lanes, which begin at column `first`, 48 columns at a time; some may lie outside
    // the row.
    template <int N>
    __forceinline__ void finish(Lane (&lanes)[N], int row, int first) const {
        if constexpr (FROM_MASK) {
            constexpr int AT_ONCE = 48 / LANES;
            unroll<(N + AT_ONCE - 1) / AT_ONCE>([&](auto group) INLINED {
                constexpr int begin = group * AT_ONCE, count = N - begin < AT_ONCE ? N - begin : AT_ONCE;
                const unsigned long long bits = mask_bits<count * LANES>(row, first + begin * LANES);
                unroll<count>([&](auto i) INLINED { keep(lanes[begin + i], unsigned(bits >> (i * LANES))); });
            });
        }
    }
    template <int COUNT>
    __forceinline__ unsigned long long mask_bits(int row, int first) const {
        constexpr int BYTES = (COUNT + 7 + 7) / 8;
        static_assert(BYTES <= 8, "the bits fit one word");
        const MaskByte* bytes = reinterpret_cast<const MaskByte*>(saved) + Index(row) * saved_pitch;
        unsigned long long bits = 0;
        unroll<BYTES>([&](auto i) INLINED {
            const int byte = (first >> 3) + i;
            if (0 <= byte && byte < saved_pitch) bits |= (unsigned long long)bytes[byte] << (8 * i);
        });
        return bits >> (first & 7);
    }
    // One element.
    __forceinline__ Acc at(int row, int col) const {
        const Acc grad = to_acc(dy[Index(row) * cols + col]);
        return ACTIVATION == IDENTITY ? grad : applied(grad, saved + Index(row) * saved_pitch, col);
    }
    __forceinline__ static Acc applied(Acc grad, const Scalar* y, int col) {
        return times_derivative(grad, to_acc(y[col]));
    }
    __forceinline__ static Acc applied(Acc grad, const MaskByte* bits, int col) {
        return bits[col / 8] >> (col % 8) & 1 ? grad : Acc(0);
    }
};
