// What write_product (filter_product.cuh) does, for images of either layout: where channels lie side by side, results go
// to memory by channels.
#pragma once
#include "channel_results.cuh"
#include "filter_product.cuh"

template <class Product, class Pixels, class Results>
__device__ __forceinline__ void write_channels(const Product& product, const Tile& tile, const Pixels& pixels,
                                               Scalar* out, const Results& results) {
    const PixelGrid& grid = pixels.grid;
    bool is_nan = false;
#pragma unroll
    for (int j = 0; j < Product::COLS; j += 2) {
        Index place[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const Pixel pixel = pixels.at(product.col(j + e));
            place[e] = pixel.n < grid.N ? results.at(pixel) : -1;
        }
        __syncwarp();  // or ptxas forms the addresses of all pixels at once, and spills some
#pragma unroll
        for (int i = 0; i < Product::ROWS; i += 2) {
            const int own = tile.first_m + product.row(i), first = own - int(threadIdx.x % 32 / 4);
            Acc values[2][2];
            Scalar* to[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                to[e] = place[e] < 0 ? nullptr : out + place[e] + first;
#pragma unroll
                for (int a = 0; a < 2; ++a) {
                    values[a][e] =
                        results.result(min(own + a * 8, results.rows - 1), product.sum(i + a, j + e), place[e]);
                    is_nan |= values[a][e] != values[a][e];
                }
            }
            store_channels(values, to, results.rows - first);
        }
    }
#pragma unroll 1
    for (int i = 0; is_nan && i < Product::ROWS * Product::COLS; ++i) {
        const int m = tile.first_m + product.row(i / Product::COLS);
        const Pixel pixel = pixels.at(product.col(i % Product::COLS));
        if (m >= results.rows || pixel.n >= grid.N) continue;
        Scalar& element = out[results.at(pixel) + m];
        if (isnan(to_acc(element))) results.form_anew(element, m, pixel);
    }
}

template <class Product, class Pixels, class Results>
__device__ __forceinline__ void write_results(const Product& product, const Tile& tile, const Pixels& pixels,
                                              Scalar* out, const Results& results) {
    if constexpr (CHANNELS_LAST)
        write_channels(product, tile, pixels, out, results);
    else
        write_product(product, tile, pixels, out, results);
}
