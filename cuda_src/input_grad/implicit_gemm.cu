// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s)
//
// One block computes TILE_M channels at TILE_N input pixels, as the matrix product of the forward pass with the roles
// of channels and filters exchanged; a stride splits the pixels into phases. g is formed as it is staged.
//
// What limits it: the multiply-adds, and the instructions that form g, several a number. On an H200, 64 channels to 128
// of 3x3 at 112 x 112 reached 33 of 65 TFLOP/s; images of 14 x 14 and less leave most multiprocessors idle.
#include "filter_product.cuh"
#include "input_grad_phase.cuh"
#include "matrix_product.cuh"

struct InputGrads {
    const Phase& phase;
    int first_c, rows;
    Index row_pitch;

    __device__ __forceinline__ Index at(const Pixel& pixel) const {
        return phase.result_at(pixel.n, first_c, pixel.p, pixel.q);
    }
    __device__ __forceinline__ Acc result(int, Acc sum) const { return sum; }
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, Acc* __restrict__ scratch,
           Scalar* __restrict__ dx, Conv2dShape shape, int slices) {
    const PackedFilter filter = filter_in(scratch, shape, slices);
    const Tile tile = filter.tile_of_block(Phase(shape, 0).grid.count());  // no phase has more pixels
    const Phase phase(shape, tile.phase);
    if (tile.first_pixel >= phase.grid.count()) return;  // the whole block

    FilterLoader rows(filter, tile);
    WindowLoader<GradReader, G_PIXELS> windows(filter, tile, phase.grid, GradReader(dy, saved, shape, tile.group));
    MatrixProduct<0> product;
    NoRowSums none;
    add_slices(product, rows, windows, none, (phase.depth + DEPTH - 1) / DEPTH);

    const int channels = shape.group_channels();
    write_product(product, tile, phase.grid, dx,
                  InputGrads{phase, tile.group * channels, channels, Index(shape.H) * shape.W});
}
