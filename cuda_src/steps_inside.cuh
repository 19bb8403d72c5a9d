// Which of `count` steps along one axis of an image, from `start` on, lead to a pixel: first to end - 1, if any does.
//
// The padding is no pixel: what would meet it is left out, and not multiplied by a zero, which makes an infinity NaN.
#pragma once

struct StepsInside {
    int first, end;

    __device__ __forceinline__ StepsInside(int start, int step, int count, int size)
        : first(start < 0 ? (-start - 1) / step + 1 : 0),
          end(start < size ? min(count, (size - 1 - start) / step + 1) : 0) {}
};
