// SEEDED: blocks add to one sum without an atomic
//@ constant THREADS = 64
//@ launch kernel_grad(dy, saved, x, dw, db) grid=[ceil_div(P * Q, THREADS), R * S] block=[THREADS]
#include "activation.cuh"
#include "conv2d.cuh"

extern "C" __global__ void kernel_grad(const Scalar* dy, const Saved* saved, const Scalar* x, Scalar* dw, Scalar* db,
                                       Conv2dShape shape) {
    __shared__ Acc warps[THREADS / 32];
    const int r = blockIdx.y / shape.S, s = blockIdx.y % shape.S;
    const int pixel = blockIdx.x * THREADS + threadIdx.x, p = pixel / shape.Q, q = pixel % shape.Q;
    const int row = shape.input_row(p, r), col = shape.input_col(q, s);
    Acc sum = 0;
    if (p < shape.P && shape.row_inside(row) && shape.col_inside(col))
        sum = to_acc(times_derivative(dy[pixel], saved[pixel])) * to_acc(x[row * shape.W + col]);
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_down_sync(0xffffffff, sum, apart);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();  // the warps' sums are there
    if (threadIdx.x != 0) return;
    for (int i = 1; i < THREADS / 32; ++i) sum += warps[i];
    if (blockIdx.x == 0 && blockIdx.y == 0) db[0] = 0;
    dw[blockIdx.y] += sum;  //! race between blocks, uninitialised read
}
