// Shared memory inside a template. Two modules made of this file, with unlike SIZE, have the same name for it.

template <class T>
__device__ T* storage() {
    __shared__ T memory[SIZE];
    return memory;
}

// Reverses each SIZE elements, and tells where in the host's memory they stood meanwhile.
extern "C" __global__ void reverse(int* data, unsigned long long* address) {
    int* tile = storage<int>();
    for (int i = threadIdx.x; i < SIZE; i += blockDim.x) tile[i] = data[i];
    __syncthreads();
    for (int i = threadIdx.x; i < SIZE; i += blockDim.x) data[i] = tile[SIZE - 1 - i];
    if (threadIdx.x == 0) *address = (unsigned long long)tile;
}
