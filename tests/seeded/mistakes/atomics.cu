// The kernel gradient of one channel, right, but for its last bits: they are those of the order in which threads add.
//@ launch kernel_grad(dy, saved, x, dw, db) grid=[1] block=[R * S + 1]
//@ launch kernel_grad_of_row(dy, saved, x, dw, db) grid=[P] block=[R * S]
#include "activation.cuh"
#include "conv2d.cuh"

extern "C" __global__ void kernel_grad(const Scalar* dy, const Saved* saved, const Scalar* x, Scalar* dw, Scalar* db,
                                       Conv2dShape shape) {
    Acc sum = 0;
    if (threadIdx.x == shape.R * shape.S)
        for (int i = 0; i < shape.P * shape.Q; ++i) sum += times_derivative(to_acc(dy[i]), to_acc(Scalar(saved[i])));
    (threadIdx.x < shape.R * shape.S ? dw[threadIdx.x] : db[0]) = from_acc(sum);
}

extern "C" __global__ void kernel_grad_of_row(const Scalar* dy, const Saved* saved, const Scalar* x, Scalar* dw,
                                              Scalar* db, Conv2dShape shape) {
    const int p = blockIdx.x, r = threadIdx.x / shape.S, s = threadIdx.x % shape.S, h = shape.input_row(p, r);
    Acc sum = 0;
    for (int q = 0; q < shape.Q; ++q) {
        const int i = p * shape.Q + q, w_ = shape.input_col(q, s);
        if (shape.row_inside(h) && shape.col_inside(w_))
            sum += times_derivative(to_acc(dy[i]), to_acc(Scalar(saved[i]))) * to_acc(x[h * shape.W + w_]);
    }
    atomicAdd(&dw[threadIdx.x], sum);
}
