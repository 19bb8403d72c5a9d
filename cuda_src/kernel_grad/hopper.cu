// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// The matrix product of tensor_core with what sm_90 has for it: one block computes TILE_M filters at a chunk of channels
// and TAPS_ASIDE taps, for a part of the pixels, and then the next such part. x and g are turned before, as wgmma wants
// what it sums: 16-bit factors to channels side by side (hopper/grad_pixels.cuh), unless they already lie so, TF32 to
// planes in which pixels are (hopper/grad_planes.cuh). A slot of shared memory holds a box of g and those of x that its
// taps see there. Some lanes of a warp ask for the boxes, two warpgroups multiply 64 filters each. add_parts adds up the
// parts in a fixed order.
//
// What limits it: no GPU has run it. Expected are the L2 cache, from which each item brings x and g anew, and the turning
// of x and g.
#include "channels_last.cuh"
#if FACTOR_BITS == 16
#include "hopper/grad_pixels.cuh"
#else
#include "hopper/grad_planes.cuh"
#endif
#include "hopper/warpgroup.cuh"
#include "kernel_grad_of_pixels.cuh"

constexpr int SLOT_BYTES = 2 * G_BYTES + X_BOXES * X_BYTES, COLUMNS = TAPS_ASIDE * CHUNK_CHANNELS;
static_assert(THREADS == 384 && TILE_M == 128, "a warpgroup that asks for boxes, and two of 64 filters each");

extern __shared__ __align__(16) unsigned char shared[];
using BoxRing = Ring<BOXES, FOR_EMPTY_BOX, FOR_BOX>;

// Scratch memory: x, g, parts of dw with channels side by side, and sums of g for each filter and run of pixels.
struct Parts {
    TurnedImage x, g;
    Acc* scratch;

    __device__ __forceinline__ Parts(Acc* scratch, const Conv2dShape& shape)
        : x(turned_x(shape)), g(turned_g(shape)), scratch(scratch) {}
    __device__ __forceinline__ unsigned* staged_x() const { return reinterpret_cast<unsigned*>(scratch); }
    __device__ __forceinline__ unsigned* staged_g() const { return staged_x() + x.words(); }
    __device__ __forceinline__ Acc* dw() const { return scratch + x.words() + g.words(); }
    __device__ __forceinline__ Acc* db(const Conv2dShape& shape, int parts) const {
        return dw() + parts * shape.w_size();
    }
};
// Where in a part (k,c) of a tap lies.
__device__ __forceinline__ Index part_at(const Conv2dShape& shape, int k, int c, int tap) {
    return (Index(k) * shape.R * shape.S + tap) * shape.group_channels() + c;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
stage_x(const Scalar* __restrict__ x, Acc* __restrict__ scratch, Conv2dShape shape) {
    const Parts parts(scratch, shape);
    stage_image(parts.staged_x(), parts.x,
                [&](int n, int c, int h, int w_) { return to_acc(x[shape.x_at(n, c, h, w_)]); });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
stage_g(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, Acc* __restrict__ scratch, Conv2dShape shape,
        int with_bias, int count) {
    const Parts parts(scratch, shape);
    Acc* const sums = parts.db(shape, count);
    stage_image(
        parts.staged_g(), parts.g,
        [&](int n, int k, int p, int q) { return pre_activation_grad(dy, saved, shape, n, k, p, q); },
        [&](int run, int first, int filters, const StagedChunk& chunk) {
            if (!with_bias || int(threadIdx.x) >= filters) return;
            Acc sum = 0;
            for (int pixel = 0; pixel < STAGED_PIXELS; ++pixel) sum += staged(chunk, pixel, threadIdx.x);
            sums[Index(run) * shape.K + first + threadIdx.x] = sum;
        });
}

// What a block computes: filters, channels and taps, and of which boxes of pixels.
struct Item {
    int taps, first_c, first_k, group, part;

    __device__ __forceinline__ Item(int number, const Conv2dShape& shape, const Parts& parts) {
        const auto next = [&](int count) {
            const int at = number % count;
            number /= count;
            return at;
        };
        taps = next(Taps::count(shape)), first_c = next(parts.x.chunks()) * CHUNK_CHANNELS;
        first_k = next((parts.g.channels + TILE_M - 1) / TILE_M) * TILE_M;
        group = next(shape.groups), part = number;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
kernel_grad(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap g_map, WaitNote* note,
            const Scalar* x_in_place, const Scalar* dy_in_place, Acc* __restrict__ scratch, Conv2dShape shape,
            int items, int part_boxes) {
    const Parts parts(scratch, shape);
    const int boxes = PixelBox::count(shape);

    // Shared memory: slots of boxes, each at a multiple of a pattern, and their barriers.
    char* const slots = reinterpret_cast<char*>(shared) + (0 - __cvta_generic_to_shared(shared)) % PATTERN;
    BoxRing& ring = *reinterpret_cast<BoxRing*>(slots + BOXES * SLOT_BYTES);
    if (threadIdx.x == 0) {
        ring.init(8);  // multiplying warps
        fence_mbarrier_init();
    }
    __syncthreads();  // the barriers are there

    BoxRing::Turn turn;
    if (threadIdx.x < 128) {
        give_registers<40>();
        if (threadIdx.x >= ASKING) return;
        if (threadIdx.x == 0) prefetch(x_map), prefetch(g_map);
        for (int number = blockIdx.x; number < items; number += gridDim.x) {
            const Item item(number, shape, parts);
            const Asked own(threadIdx.x, shape, Taps(item.taps, shape), item.first_c, item.first_k, item.group);
            const int end = min((item.part + 1) * part_boxes, boxes);
            for (int box = item.part * part_boxes; box < end; ++box, turn.advance()) {
                char* const slot = slots + turn.slot * SLOT_BYTES;
                Mbarrier& full = ring.full[turn.slot];
                ring.wait_until_empty(turn, note);
                if (threadIdx.x == 0) full.arrive_and_expect(SLOT_BYTES);  // also what others have asked for before
                own.ask(slot, slot + 2 * G_BYTES, g_map, x_map, full, box, shape);
            }
        }
        return;
    }

    take_registers<232>();
    const int warpgroup = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    for (int number = blockIdx.x; number < items; number += gridDim.x) {
        const Item item(number, shape, parts);
        WarpgroupSums<COLUMNS> product;
        Mbarrier* read = nullptr;  // of the slot that products under way read
        bool accumulate = false;
        const int end = min((item.part + 1) * part_boxes, boxes);
#pragma unroll 1
        for (int box = item.part * part_boxes; box < end; ++box, turn.advance()) {
            ring.wait_until_full(turn, note);
            char* const slot = slots + turn.slot * SLOT_BYTES;
            const Matrix g(slot + warpgroup * G_BYTES, PATTERN), x(slot + 2 * G_BYTES, PATTERN, LEADING);
            product.begin();
#pragma unroll
            for (int step = 0; step < STEPS; ++step, accumulate = true)
                product.add<IS_TRANSPOSED, IS_TRANSPOSED>(g + step * STEP_BYTES, x + step * STEP_BYTES, accumulate);
            product.commit();
            product.wait<1>();  // those of the slot before have ended
            if (lane == 0 && read) read->arrive();
            read = &ring.empty[turn.slot];
        }
        product.wait<0>();
        if (lane == 0) read->arrive();

        // Of two rows, 8 apart, two neighbours in each eight channels.
        const Taps taps(item.taps, shape);
        Acc* const part = parts.dw() + item.part * shape.w_size();
#pragma unroll
        for (int i = 0; i < COLUMNS / 4; ++i) {  // a pair of sums
            const int m = item.first_k + warpgroup * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4 + i % 2 * 8;
            const int column = i / 2 * 8, tap = taps.tap(column / CHUNK_CHANNELS, shape);
            const int c = item.first_c + column % CHUNK_CHANNELS + lane % 4 * 2;
            if (m >= parts.g.channels || tap >= shape.R * shape.S) continue;
            Acc* const to = part + part_at(shape, item.group * parts.g.channels + m, c, tap);
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (c + e < parts.x.channels) to[e] = unscaled(product.sums[i / 2 * 4 + i % 2 * 2 + e]);
        }
    }
}

// A thread adds up the parts of a tap, channels consecutive in threadIdx.x. What is NaN is formed anew: the padding of x,
// and what lies beyond g, are no pixels, but were multiplied as zeros.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
add_parts(const Acc* __restrict__ scratch, const Scalar* __restrict__ dy, const Saved* __restrict__ saved,
          const Scalar* __restrict__ x, Scalar* __restrict__ dw, Conv2dShape shape, int count) {
    const Index at = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= shape.w_size()) return;
    const Acc* const parts = Parts(const_cast<Acc*>(scratch), shape).dw() + at;
    LongSum sum;
    for (int part = 0; part < count; ++part) sum.add(parts[part * shape.w_size()]);

    const int c = at % shape.group_channels(), s = at / shape.group_channels() % shape.S;
    const int r = at / shape.group_channels() / shape.S % shape.R, k = at / shape.group_channels() / shape.S / shape.R;
    if (isnan(sum.value())) {
        sum = LongSum();
        for (int n = 0; n < shape.N; ++n)
            sum.add(dw_of_pixels(dy, saved, x, shape, n, k, c, r, s, 0, shape.P, 0, shape.Q));
    }
    dw[shape.w_at(k, c, r, s)] = from_acc(sum.value());
}

// A block adds up the sums of g of 32 filters, consecutive in threadIdx.x: each of its rows every 32nd, then all rows.
extern "C" __global__ void __launch_bounds__(1024, 1)
add_biases(const Acc* __restrict__ scratch, Scalar* __restrict__ db, Conv2dShape shape, int count, int runs) {
    __shared__ Acc rows[32][32];
    const int k = blockIdx.x * 32 + threadIdx.x;
    const Acc* const sums = Parts(const_cast<Acc*>(scratch), shape).db(shape, count) + k;
    LongSum sum;
    for (int run = threadIdx.y; k < shape.K && run < runs; run += 32) sum.add(sums[Index(run) * shape.K]);
    rows[threadIdx.y][threadIdx.x] = sum.value();
    __syncthreads();  // every row's sum is there
    if (threadIdx.y != 0 || k >= shape.K) return;
    sum = LongSum();
    for (int row = 0; row < 32; ++row) sum.add(rows[row][threadIdx.x]);
    db[k] = from_acc(sum.value());
}
