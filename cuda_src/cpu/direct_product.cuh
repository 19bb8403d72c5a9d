// The sum that the vectorised_direct of forward and of input_grad share: of a tile of rows (filters, or channels) at a
// few lines of all images,
//     out[m][i] = sum_{a,r,s} signal_a[i + r * line + s] * tap_a,m(r,s)
//
// Planes a are laid out a chunk at a time (cpu/signal.cuh). A thread keeps REG_M rows at REG_N Lanes of pixels in
// registers, through all taps of a chunk: of each tap it loads REG_N Lanes, and a number for each row. A chunk's sums
// are added to those of the chunks before in shared memory, so that no term passes through more additions than a chunk
// has taps, and one for each chunk.
#pragma once
#include "cpu/signal.cuh"

// What a block computes, as the host has chosen: rows of a group, lines of the signal, planes at a time, and the
// elements of a plane's signal with what threads read beyond its end.
struct DirectTile {
    int rows, lines, chunk, size;
};

// The filter of a row m of a group: its taps for plane 0, and how much further on those of the next plane are.
template <bool TURNED>
struct RowTaps {
    const Scalar* w;
    Index row_step, plane_step;
    int R, S, line, step;  // of the signal, from one row or column of the filter to the next

    __forceinline__ void add(Lane (&sums)[REG_M][REG_N], const Acc* signals, int size, int first, int count,
                             const int (&rows)[REG_M]) const {
        constexpr int NEXT = TURNED ? -1 : 1;
        const Scalar* taps[REG_M];
        unroll<REG_M>([&](auto i) INLINED {
            taps[i] = w + rows[i] * row_step + first * plane_step + (TURNED ? R * S - 1 : 0);
        });
        for (int a = 0; a < count; ++a) {
            Index at = a * plane_step;
            // Turned, a row's taps for the next planes lie far apart, where no CPU looks for them by itself.
            if (TURNED && a + 2 < count)
                unroll<REG_M>([&](auto i) INLINED { __builtin_prefetch(taps[i] + at + 2 * plane_step); });
            for (int r = 0; r < R; ++r) {
                const Acc* from = signals + a * size + r * line;
                for (int s = 0; s < S; ++s, from += step, at += NEXT) {
                    Lane x[REG_N];
                    unroll<REG_N>([&](auto j) INLINED {
                        x[j] = load_accs(from + j * LANES);
                        settle(x[j]);  // or each product would load it again
                    });
                    unroll<REG_M>([&](auto i) INLINED {
                        const Acc tap = to_acc(taps[i][at]);
                        unroll<REG_N>([&](auto j) INLINED { sums[i][j] += tap * x[j]; });
                    });
                }
            }
        }
    }
};

// rows: of the group, of which the tile's begin at first_m. Of the signal's planes it is summed over
// `planes` from first_plane on. write(m, n, row, from):
// a row of results, from's first ones.
template <class Taps, class PlaneOf, class Write>
__forceinline__ void direct_product(const Signal& signal, const Taps& taps, const DirectTile& tile, int first_m,
                                    int rows, int first_line, int first_plane, int planes, PlaneOf&& plane_of,
                                    int out_rows, Write&& write) {
    constexpr int TILE_COLS = REG_N * LANES;
    const int row_tiles = (tile.rows + REG_M - 1) / REG_M;
    const int col_tiles = (tile.lines * signal.pitch + TILE_COLS - 1) / TILE_COLS, width = (col_tiles + 1) * TILE_COLS;
    Acc* const signals = reinterpret_cast<Acc*>(settled(shared));
    Acc* const results = signals + tile.chunk * tile.size;
    const int lines_read = tile.lines + (taps.R - 1) * (taps.line / signal.pitch);

    for (int first = 0; first < planes; first += tile.chunk) {
        const int count = min(tile.chunk, planes - first);
        if (first > 0) __syncthreads();  // nobody reads the chunk before any more
        for (int a = threadIdx.x; a < count; a += THREADS)
            signal.lay_out(signals + a * tile.size, tile.size, first_line, lines_read, first_plane + first + a,
                           plane_of);
        __syncthreads();  // the chunk is there
        for (int t = threadIdx.x; t < row_tiles * col_tiles; t += THREADS) {
            const int row = t % row_tiles * REG_M, col = t / row_tiles * TILE_COLS;
            Lane sums[REG_M][REG_N];
            int m[REG_M];
            unroll<REG_M>([&](auto i) INLINED {
                m[i] = min(first_m + row + i, rows - 1);  // beyond the last row: the same again, which is not written
                unroll<REG_N>([&](auto j) INLINED { sums[i][j] = Lane{}; });
            });
            taps.add(sums, signals + col, tile.size, first, count, m);
            unroll<REG_M>([&](auto i) INLINED {
                unroll<REG_N>([&](auto j) INLINED {
                    Acc* const to = results + (row + i) * width + col + j * LANES;
                    store_accs(to, first == 0 ? sums[i][j] : load_accs(to) + sums[i][j]);
                });
                // What is read, and not written, with the last elements of a row.
                if (col + 2 * TILE_COLS == width) store_accs(results + (row + i) * width + col + TILE_COLS, Lane{});
            });
        }
    }
    __syncthreads();  // all results are there
    const int rows_here = min(tile.rows, rows - first_m);
    for (int i = threadIdx.x; i < rows_here * tile.lines; i += THREADS) {
        const int m = i / tile.lines, line = i % tile.lines;
        const int n = (first_line + line) / signal.height, row = (first_line + line) % signal.height;
        if (n < signal.N && row < out_rows) write(first_m + m, n, row, results + m * width + line * signal.pitch);
    }
}

// Writes a row of results, finish(sums, column) of each Lane. Returns whether there is a NaN among them.
template <class Finish>
__forceinline__ bool write_row(Scalar* to, const Acc* from, int cols, Finish&& finish) {
    Lane all = {};
    for (int col = 0; col < cols; col += LANES) {
        const Lane results = finish(load_accs(from + col), col);
        if (col + LANES <= cols) {
            store(to + col, results);
            all += results;
        } else {
            store_partial(to + col, results, cols - col);
            all += lane_numbers() < cols - col ? results : Lane{};
        }
    }
    return isnan(total(all));
}
