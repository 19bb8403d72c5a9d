// Where in a tile the sums of each thread stand: rows[thread][REG_M], columns[thread][REG_N]
#include "conv2d.cuh"
#include "matrix_product.cuh"

extern "C" __global__ void places(int* rows, int* columns, Conv2dShape shape) {
    const MatrixProduct<0> product;
    for (int i = 0; i < REG_M; ++i) rows[threadIdx.x * REG_M + i] = product.row(i);
    for (int j = 0; j < REG_N; ++j) columns[threadIdx.x * REG_N + j] = product.col(j);
}
