// What vectorised_direct reads: images laid out as one signal.
//
//     . 0 1 2 . 3 4 5 . 6 7 8 . . . . . 0 1 2 . 3 ...     (a 3 x 3 image and the next one, with one pixel of padding)
//
// Line after line, with the padding between two lines once, for it is the end of the one and the beginning of the
// other, and so between two images: tap (r,s) is the same number of elements away from every pixel. A Lane of LANES
// neighbouring pixels reads each tap with one load at one address, wherever rows and images end in it; what it computes
// where there is no pixel is not written.
#pragma once
#include "cpu/planes.cuh"

extern __shared__ __align__(64) unsigned char shared[];

__forceinline__ Lane load_accs(const Acc* from) {
    Lane lane;
    memcpy(&lane, from, sizeof lane);
    return lane;
}
__forceinline__ void store_accs(Acc* to, Lane lane) { memcpy(to, &lane, sizeof lane); }

struct Signal {
    const int N, planes, rows, cols;  // the images
    const int top, left;      // of the padding
    const int height, pitch;  // the lines of an image, and the elements of a line

    __forceinline__ Signal(int N, int planes, int rows, int cols, int top, int bottom, int left, int right)
        : N(N), planes(planes), rows(rows), cols(cols), top(top), left(left), height(rows + max(top, bottom)),
          pitch(cols + max(left, right)) {}

    // Lays out `count` lines from `first` on of plane number `plane` of each image, and after them zeros: `size`
    // elements in all. plane_of(n * planes + plane) is one. What is stored beyond the end of a line is overwritten by
    // the next one.
    template <class PlaneOf>
    __forceinline__ void lay_out(Acc* to, int size, int first, int count, int plane, PlaneOf&& plane_of) const {
        int n = first / height, row = first % height - top;
        Acc* const end = to + size;
        zero(to, left);
        to += left;
        for (int i = 0; i < count; ++i, to += pitch) {
            if (n < N && 0 <= row && row < rows) {
                const Index number = Index(n) * planes + plane;
                const auto image = plane_of(number);
                const Index left_of_all = ((Index(N) * planes - number) * rows - row) * cols;
                for (int col = 0; col < cols; col += LANES)
                    store_accs(to + col, lane_of(image, row, col, col + LANES <= left_of_all));
                zero(to + cols, pitch - cols);
            } else {
                zero(to, pitch);
            }
            if (++row == height - top) {
                row = -top;
                ++n;
            }
        }
        for (; to < end; ++to) *to = 0;
    }

private:
    // What lies from (row, col) on in memory, if so much is there; else what the row has.
    template <class Image>
    __forceinline__ Lane lane_of(const Image& image, int row, int col, bool is_there) const {
        Lane lanes[1];
        if (is_there) {
            image.read(lanes[0], row, col);
            image.finish(lanes, row, col);
        } else {
            Acc elements[LANES] = {};
            for (int i = 0; i < min(LANES, cols - col); ++i) elements[i] = image.at(row, col + i);
            memcpy(lanes, elements, sizeof elements);
        }
        return lanes[0];
    }
    static __forceinline__ void zero(Acc* to, int count) {
        for (int i = 0; i < count; i += LANES) store_accs(to + i, Lane{});
    }
};
