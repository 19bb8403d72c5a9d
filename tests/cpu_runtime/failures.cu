// Kernels that cannot end well, and one that does.

struct Shape {
    int factor, summand, unused[2];
};

extern "C" __global__ void scaled(const float* in, float* out, Shape shape, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = shape.factor * in[i] + shape.summand;
}

// In block 3, half of the threads wait at a barrier, the others for lanes that are not coming.
extern "C" __global__ void deadlock_at_barrier() {
    if (blockIdx.x != 3) return;
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncwarp(0xffff8000);
}

// Each of the first three lanes waits for its neighbour, which waits under another mask.
extern "C" __global__ void deadlock_in_warp(int* out) {
    const int lane = threadIdx.x;
    if (lane < 3) out[lane] = __shfl_xor_sync(1u << lane | 1u << (lane + 1) % 3, lane, 1);
}

extern "C" __global__ void outside_its_mask(int* out) {
    if (threadIdx.x == 37) out[0] = __shfl_sync(0xf, 1, 0);
}

extern "C" __global__ void mixed_operations(int* out) {
    if (threadIdx.x % 2)
        out[threadIdx.x] = __shfl_xor_sync(0xffffffff, 1, 1);
    else
        out[threadIdx.x] = __ballot_sync(0xffffffff, 1);
}

extern "C" __global__ void mixed_barriers(int* out) {
    if (threadIdx.x % 2)
        out[threadIdx.x] = __syncthreads_count(1);
    else
        __syncthreads();
}
