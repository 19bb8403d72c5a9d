// Kernels for host programs, right and wrong ones, that are written for the driver alone.

extern "C" __global__ void twice(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2 * x[i];
}

// Each thread reads what another has put into dynamic shared memory.
extern "C" __global__ void reversed(const float* x, float* y) {
    extern __shared__ float all[];
    all[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = all[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void beyond(float* y, int n) { y[n] = 0; }

extern "C" __global__ void set(float* y, short i, int value) { y[i] = float(value); }
