// Where each thread is, as the built-in variables tell it.
//
// A record is x, y, z of threadIdx, blockIdx, blockDim and gridDim, then how often it was written.

__device__ __forceinline__ void write_record(unsigned* records) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned* record = records + (block * (blockDim.x * blockDim.y * blockDim.z) + thread) * 13;
    const unsigned values[12] = {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z,
                                 blockDim.x,  blockDim.y,  blockDim.z,  gridDim.x,  gridDim.y,  gridDim.z};
    for (int i = 0; i < 12; ++i) record[i] = values[i];
    atomicAdd(&record[12], 1u);
}

extern "C" __global__ void places(unsigned* records) { write_record(records); }

// Reads none of the variables before it has waited: others ran on this OS thread meanwhile.
extern "C" __global__ void places_after_barrier(unsigned* records) {
    __syncthreads();
    write_record(records);
}

extern "C" __global__ void places_after_warp(unsigned* records) {
    __syncwarp();
    write_record(records);
}

// The one block that is run of a grid with more blocks than fit 32 bits.
extern "C" __global__ void place_of_block(unsigned* place) {
    place[0] = blockIdx.x;
    place[1] = blockIdx.y;
    place[2] = blockIdx.z;
}
