// Operations of a warp. Each row of an output is what one operation gave to each thread of the block.

constexpr unsigned ALL = 0xffffffff;

template <class T>
__device__ __forceinline__ void shuffle(const T* values, T* out, int argument, int width) {
    const T value = values[threadIdx.x];
    out += threadIdx.x;
    out[0] = __shfl_sync(ALL, value, argument, width);
    out[blockDim.x] = __shfl_up_sync(ALL, value, argument, width);
    out[2 * blockDim.x] = __shfl_down_sync(ALL, value, argument, width);
    out[3 * blockDim.x] = __shfl_xor_sync(ALL, value, argument, width);
}

extern "C" __global__ void shuffles_of_int(const int* values, int* out, int argument, int width) {
    shuffle(values, out, argument, width);
}

extern "C" __global__ void shuffles_of_float(const float* values, float* out, int argument, int width) {
    shuffle(values, out, argument, width);
}

extern "C" __global__ void shuffles_of_double(const double* values, double* out, int argument, int width) {
    shuffle(values, out, argument, width);
}

// Without a width: all 32 lanes. Each lane asks for one of its own choice.
extern "C" __global__ void gather(const int* values, const int* lanes, int* out) {
    out[threadIdx.x] = __shfl_sync(ALL, values[threadIdx.x], lanes[threadIdx.x]);
}

extern "C" __global__ void votes(const int* predicates, unsigned* out) {
    const int predicate = predicates[threadIdx.x];
    out += threadIdx.x;
    out[0] = __ballot_sync(ALL, predicate);
    out[blockDim.x] = __any_sync(ALL, predicate);
    out[2 * blockDim.x] = __all_sync(ALL, predicate);
}

extern "C" __global__ void reductions(const int* values, int* out) {
    const int value = values[threadIdx.x];
    const unsigned bits = value;
    out += threadIdx.x;
    out[0] = __reduce_add_sync(ALL, value);
    out[1 * blockDim.x] = __reduce_min_sync(ALL, value);
    out[2 * blockDim.x] = __reduce_max_sync(ALL, value);
    out[3 * blockDim.x] = __reduce_add_sync(ALL, bits);
    out[4 * blockDim.x] = __reduce_min_sync(ALL, bits);
    out[5 * blockDim.x] = __reduce_max_sync(ALL, bits);
    out[6 * blockDim.x] = __reduce_and_sync(ALL, bits);
    out[7 * blockDim.x] = __reduce_or_sync(ALL, bits);
    out[8 * blockDim.x] = __reduce_xor_sync(ALL, bits);
}

// The lanes whose numbers leave one remainder by three do something of their own, under a mask of their own.
extern "C" __global__ void thirds(const int* values, int* out) {
    const unsigned first = 0x49249249, second = 0x92492492, third = 0x24924924;
    const int lane = threadIdx.x % 32, value = values[threadIdx.x];
    int result;
    if (lane % 3 == 0)
        result = __reduce_add_sync(first, value);
    else if (lane % 3 == 1)
        result = __shfl_sync(second, value, (lane + 3) % 33);  // the next of these lanes, in a ring
    else
        result = __ballot_sync(third, value > 0);
    out[threadIdx.x] = result;
}

// Lanes from `stay` on return, while those before them wait or after that; the mask still names all.
extern "C" __global__ void some_leave(const int* values, int* out, int stay) {
    const int lane = threadIdx.x % 32;
    if (lane >= stay) return;
    out += threadIdx.x;
    out[0] = __reduce_add_sync(ALL, values[threadIdx.x]);
    out[blockDim.x] = __ballot_sync(ALL, 1);
    out[2 * blockDim.x] = __shfl_sync(ALL, values[threadIdx.x], 0);
}

// What a lane has written before __syncwarp, its neighbour reads after it.
extern "C" __global__ void neighbours(int* data) {
    __shared__ int tile[1024];
    tile[threadIdx.x] = data[threadIdx.x];
    __syncwarp();
    data[threadIdx.x] = tile[threadIdx.x ^ 1];
}
