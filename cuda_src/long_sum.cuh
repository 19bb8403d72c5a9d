// A sum of any number of terms whose rounding error does not grow with their number.
//
// One running float32 sum of 4096 x 4096 equal terms is wrong in its second digit. Here RUN terms are added up
// plainly, and each finished run is added to the total by Kahan's compensated addition (W. Kahan, "Further
// remarks on reducing truncation errors", CACM 8(1), 1965). The error is at most about (RUN + 3) round-offs of
// the sum of magnitudes, however long the sum; a run costs one addition and one well-predicted branch a term.
#pragma once
#include "scalar.cuh"

struct LongSum {
    static constexpr int RUN = 64;

    Acc run = 0, total = 0;
    Acc lost = 0;  // what the last addition to total rounded away, negated
    int terms = 0;

    __device__ __forceinline__ void add(Acc term) {
        run += term;
        if (++terms == RUN) end_run();
    }

    __device__ __forceinline__ void end_run() {
        const Acc corrected = run - lost;
        const Acc sum = total + corrected;
        lost = (sum - total) - corrected;
        if (lost - lost != 0) lost = 0;  // infinite or NaN: such a total has lost nothing
        total = sum;
        run = 0;
        terms = 0;
    }

    __device__ __forceinline__ Acc value() const { return total + (run - lost); }
};
