// Kernels that take their time, and kernels that tell which blocks have run where.

// Each thread counts for its block, after a barrier.
extern "C" __global__ void count(int* counts) {
    __shared__ int block;
    if (threadIdx.x == 0) block = blockIdx.x;
    __syncthreads();
    atomicAdd(&counts[block], 1);
}

// Values go round the block and change on their way: a thread that were lost, or run twice, would show.
extern "C" __global__ void march(unsigned* values, int steps) {
    __shared__ unsigned tile[1024];
    unsigned* mine = values + blockIdx.x * blockDim.x + threadIdx.x;
    unsigned value = *mine;
    for (int step = 0; step < steps; ++step) {
        tile[threadIdx.x] = value;
        __syncthreads();
        value = 3 * tile[(threadIdx.x + 1) % blockDim.x] + threadIdx.x;
        __syncthreads();
    }
    *mine = value;
}

// The same within warps, by shuffles.
extern "C" __global__ void march_in_warps(unsigned* values, int steps) {
    unsigned* mine = values + blockIdx.x * blockDim.x + threadIdx.x;
    unsigned value = *mine;
    for (int step = 0; step < steps; ++step)
        value = 3 * __shfl_sync(0xffffffff, value, threadIdx.x + 1) + threadIdx.x;
    *mine = value;
}

// Long threads without any barrier.
extern "C" __global__ void roots(float* values, int steps) {
    float* mine = values + blockIdx.x * blockDim.x + threadIdx.x;
    float value = *mine;
    for (int step = 0; step < steps; ++step) value = sqrtf(value + threadIdx.x);
    *mine = value;
}

// Where the block's shared memory stands in the host's memory: another place for each worker.
extern "C" __global__ void storage(unsigned long long* addresses, float* sink, int steps) {
    __shared__ float value;
    value = float(steps);
    for (int step = 0; step < steps; ++step) value = sqrtf(value + step);
    *sink = value;
    addresses[blockIdx.x] = (unsigned long long)&value;
}
