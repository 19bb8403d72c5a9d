// What a block does together: reversals and tree sums through shared memory, __syncthreads and its votes.

extern "C" __global__ void reverse_static(int* data) {
    __shared__ int tile[1024];
    int* mine = data + blockIdx.x * blockDim.x;
    tile[threadIdx.x] = mine[threadIdx.x];
    __syncthreads();
    mine[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// The same through dynamic shared memory, from its int number `first` on.
extern "C" __global__ void reverse_dynamic(int* data, int first) {
    extern __shared__ int dynamic_tile[];
    int* mine = data + blockIdx.x * blockDim.x;
    dynamic_tile[first + threadIdx.x] = mine[threadIdx.x];
    __syncthreads();
    mine[threadIdx.x] = dynamic_tile[first + blockDim.x - 1 - threadIdx.x];
}

// blockDim.x is a power of two: every step adds the upper half to the lower one.
__device__ __forceinline__ void tree_sum(long long* tile, const long long* data, long long* sums) {
    tile[threadIdx.x] = data[blockIdx.x * blockDim.x + threadIdx.x];
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) tile[threadIdx.x] += tile[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = tile[0];
}

extern "C" __global__ void tree_sum_static(const long long* data, long long* sums) {
    __shared__ long long tile[1024];
    tree_sum(tile, data, sums);
}

extern "C" __global__ void tree_sum_dynamic(const long long* data, long long* sums) {
    extern __shared__ long long dynamic_sums[];
    tree_sum(dynamic_sums, data, sums);
}

// Two declarations of dynamic shared memory are two names of one storage: what is written as floats is read as
// bytes.
extern "C" __global__ void two_names(const float* floats, unsigned char* bytes) {
    extern __shared__ float as_floats[];
    extern __shared__ unsigned char as_bytes[];
    as_floats[threadIdx.x] = floats[threadIdx.x];
    __syncthreads();
    const unsigned other = blockDim.x - 1 - threadIdx.x;
    for (unsigned i = 4 * other; i < 4 * other + 4; ++i) bytes[i] = as_bytes[i];
}

// A row of `out` is what one of the votes told each thread.
extern "C" __global__ void votes(const int* predicates, int* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, row = gridDim.x * blockDim.x;
    const int predicate = predicates[i];
    out[i] = __syncthreads_count(predicate);
    out[row + i] = __syncthreads_and(predicate);
    out[2 * row + i] = __syncthreads_or(predicate);
}

// Every third thread, number `leaver` of each three, has returned before the others meet. Those that are left
// count themselves, and look at what their neighbour (left or not) has written.
extern "C" __global__ void some_leave(int* neighbours, int* counts, int leaver) {
    __shared__ int tile[1024];
    const int t = threadIdx.x;
    tile[t] = 1000 + t;
    if (t % 3 == leaver) return;
    __syncthreads();
    neighbours[t] = tile[(t + 1) % blockDim.x];
    counts[t] = __syncthreads_count(1);
}
