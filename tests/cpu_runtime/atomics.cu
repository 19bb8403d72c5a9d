// All threads of all blocks work on the same few numbers.

extern "C" __global__ void totals(int* i, unsigned* u, unsigned long long* ull, float* f, double* d, int times) {
    for (int k = 0; k < times; ++k) {
        atomicAdd(&i[0], 1);
        atomicSub(&i[1], 2);
        atomicAdd(&u[0], 3u);
        atomicInc(&u[1], 9u);  // counts to 9, then is 0
        atomicAdd(&ull[0], 1ull << 20);
        atomicAdd(&f[0], 1.0f);
        atomicAdd(&d[0], 0.5);

        int expected = i[6], seen;
        while ((seen = atomicCAS(&i[6], expected, expected + 1)) != expected) expected = seen;
    }
    const int number = blockIdx.x * blockDim.x + threadIdx.x;
    atomicMin(&i[2], number);
    atomicMax(&i[3], number);
    atomicXor(&i[4], number);
    atomicOr(&u[2], 1u << number % 31);
    atomicAnd(&u[3], ~(1u << number % 31));
    atomicAdd(&i[5], atomicExch(&u[4], 1u) == 0);  // one alone finds it 0
    atomicDec(&u[5], 1000000u);
}

// Each caller is told another number.
extern "C" __global__ void tickets(unsigned* next, unsigned* taken) {
    atomicAdd(&taken[atomicAdd(next, 1u)], 1u);
}
