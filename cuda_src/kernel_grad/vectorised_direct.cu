// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p - pad + r*dilation, q - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                          with g = dy * phi'(s), stride 1
//
// One block adds up, with a CPU's vectors, all taps of a tile of filters and a chunk of channels over a part of the
// lines of all images. x and g are laid out so that a vector of neighbouring pixels of either is one load
// (cpu/signal.cuh); g is zero where there is no pixel. A thread keeps REG_M filters at REG_N taps in registers, each a
// vector of sums; kernel_grad_total adds up the parts in a fixed order. What limits it: the CPU's multiply-adds, and
// with few lines adding up the vectors.
#include "cpu/signal.cuh"
#include "kernel_grad_of_pixels.cuh"
#include "kernel_grad_total.cuh"

// Element i: of left if bit HALF of i is 0, else of right; the sum of two such halves.
template <int HALF, int... I>
__forceinline__ Lane folded(Lane left, Lane right, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(left, right, (I & HALF ? I - HALF + LANES : I)...) +
           __builtin_shufflevector(left, right, (I & HALF ? I + LANES : I + HALF)...);
}
// Element i is the total of lanes[i]: as many Lanes as one has elements, halved in number with each step.
template <int HALF = LANES / 2>
__forceinline__ Lane totals(Lane (&lanes)[LANES]) {
    unroll<HALF>([&](auto i) INLINED {
        lanes[i] = folded<HALF>(lanes[i], lanes[i + HALF], std::make_integer_sequence<int, LANES>{});
    });
    if constexpr (HALF == 1)
        return lanes[0];
    else
        return totals<HALF / 2>(lanes);
}
// found = the sums of all elements. Returns whether there is a NaN among them.
__forceinline__ bool add_up(Acc (&found)[REG_M][REG_N], const Lane (&sums)[REG_M][REG_N]) {
    constexpr int COUNT = REG_M * REG_N;
    Lane all = {};
    unroll<(COUNT + LANES - 1) / LANES>([&](auto group) INLINED {
        constexpr int first = group * LANES, count = COUNT - first < LANES ? COUNT - first : LANES;
        Lane lanes[LANES];
        unroll<LANES>([&](auto i) INLINED {
            if constexpr (i < count)
                lanes[i] = sums[(first + i) / REG_N][(first + i) % REG_N];
            else
                lanes[i] = Lane{};
        });
        const Lane sum = totals(lanes);
        memcpy(&found[0][0] + first, &sum, count * sizeof(Acc));
        all += sum;
    });
    return isnan(total(all));
}

// partial[part][tap], with gridDim.y parts; the K biases are the last taps. A part is `ranges` ranges of `lines` lines.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape, int tile_rows, int lines, int chunk, int size, int ranges) {
    // Where am I: a chunk of channels of a tile of filters of a group, consecutive in blockIdx.x.
    const int filters = shape.group_filters(), channels = shape.group_channels(), window = shape.R * shape.S;
    const int tiles = (filters + tile_rows - 1) / tile_rows, chunks = (channels + chunk - 1) / chunk;
    const int first_c = blockIdx.x % chunks * chunk, group = blockIdx.x / chunks / tiles;
    const int first_k = group * filters + blockIdx.x / chunks % tiles * tile_rows;
    const int rows = min(tile_rows, (group + 1) * filters - first_k), count = min(chunk, channels - first_c);
    const int reach_h = (shape.R - 1) * shape.dilation_h, reach_w = (shape.S - 1) * shape.dilation_w;
    const Signal images(shape.N, shape.C, shape.H, shape.W, shape.pad_top, shape.P + reach_h - shape.H - shape.pad_top,
                        shape.pad_left, shape.Q + reach_w - shape.W - shape.pad_left);
    const Signal grads(shape.N, shape.K, shape.P, shape.Q, 0, images.height - shape.P, 0, images.pitch - shape.Q);
    Acc* const x_signals = reinterpret_cast<Acc*>(settled(shared));
    Acc* const g_signals = x_signals + chunk * size;
    Acc* const mine = partial + blockIdx.y * (shape.w_size() + shape.K);
    const int first_line = blockIdx.y * ranges * lines;
    const int end_line = min(first_line + ranges * lines, shape.N * images.height);
    const int row_tiles = (rows + REG_M - 1) / REG_M, tap_tiles = (count * window + REG_N - 1) / REG_N;
    // Where the sum of row i and tap j lies, of this block's.
    const auto sum_at = [&](int i, int j) INLINED {
        return mine + (Index(first_k + i) * channels + first_c) * window + j;
    };

    bool is_nan = false;
    for (int line = first_line; line == first_line || line < end_line; line += lines) {  // no image: once, zeros
        const int here = min(lines, end_line - line), pixels = here * images.pitch;
        if (line > first_line) __syncthreads();  // nobody reads the lines before any more
        for (int i = threadIdx.x; i < count + rows; i += THREADS)
            if (i < count)
                images.lay_out(x_signals + i * size, size, line, here + reach_h, group * channels + first_c + i,
                               [&](Index plane) INLINED { return Plane(x, plane, shape.H, shape.W); });
            else
                grads.lay_out(g_signals + (i - count) * size, size, line, here, first_k + i - count,
                              [&](Index plane) INLINED { return GradPlane(dy, saved, plane, shape); });
        __syncthreads();  // the lines are there
        for (int t = threadIdx.x; t < row_tiles * tap_tiles; t += THREADS) {
            const int row = t / tap_tiles * REG_M, tap = t % tap_tiles * REG_N;
            const Acc *g[REG_M], *windows[REG_N];
            Lane sums[REG_M][REG_N];
            // Beyond the last filter or tap: the same again, which is not written.
            unroll<REG_M>([&](auto i) INLINED { g[i] = g_signals + min(row + i, rows - 1) * size; });
            unroll<REG_N>([&](auto j) INLINED {
                const int at = min(tap + j, count * window - 1), r = at / shape.S % shape.R, s = at % shape.S;
                windows[j] = x_signals + at / window * size + r * shape.dilation_h * images.pitch + s * shape.dilation_w;
            });
            unroll<REG_M>([&](auto i) INLINED { unroll<REG_N>([&](auto j) INLINED { sums[i][j] = Lane{}; }); });
            for (int pixel = 0; pixel < pixels; pixel += LANES) {
                Lane seen[REG_N];
                unroll<REG_N>([&](auto j) INLINED { seen[j] = load_accs(windows[j] + pixel); });
                unroll<REG_M>([&](auto i) INLINED {
                    Lane grad = load_accs(g[i] + pixel);
                    settle(grad);  // or each product would load it again
                    unroll<REG_N>([&](auto j) INLINED { sums[i][j] += grad * seen[j]; });
                });
            }
            Acc found[REG_M][REG_N];
            is_nan |= add_up(found, sums);
            for (int i = 0; i < min(REG_M, rows - row); ++i) {
                Acc* const to = sum_at(row + i, tap);
                for (int j = 0; j < min(REG_N, count * window - tap); ++j)
                    to[j] = line == first_line ? found[i][j] : to[j] + found[i][j];
            }
        }
        for (int i = threadIdx.x; first_c == 0 && i < rows; i += THREADS) {
            Lane sum = {};
            for (int pixel = 0; pixel < pixels; pixel += LANES) sum += load_accs(g_signals + i * size + pixel);
            Acc& to = mine[shape.w_size() + first_k + i];
            to = line == first_line ? total(sum) : to + total(sum);
        }
    }

    // What is NaN may be so because zeros were multiplied that are no pixels: it is formed anew, of pixels alone.
    if (!is_nan) return;
    for (int i = threadIdx.x * REG_M * REG_N; i < row_tiles * tap_tiles * REG_M * REG_N; ++i) {
        const int t = i / (REG_M * REG_N), row = t / tap_tiles * REG_M + i / REG_N % REG_M;
        const int tap = t % tap_tiles * REG_N + i % REG_N, k = first_k + row, c = first_c + tap / window;
        if (t % THREADS != threadIdx.x || row >= rows || tap >= count * window || !isnan(*sum_at(row, tap))) continue;
        const int r = tap / shape.S % shape.R, s = tap % shape.S;
        LongSum sum;
        for (int line = first_line; line < end_line && !isnan(sum.value()); ++line) {
            const int n = line / images.height, p = line % images.height;
            sum.add(dw_of_pixels(dy, saved, x, shape, n, k, c, r, s, p, p + 1, 0, shape.Q));
        }
        *sum_at(row, tap) = sum.value();
    }
}
