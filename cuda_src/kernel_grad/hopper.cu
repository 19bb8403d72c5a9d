// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// The matrix product of tensor_core with what sm_90 has for it: one block computes TILE_M filters at a chunk of 64
// channels and TAPS_ASIDE taps of one column, for a part of the pixels, and then the next such part. x and g are turned
// before, to channels side by side (hopper/staged_image.cuh), unless they already lie so. Pixels are what is summed, so that both factors lie in
// shared memory transposed, a pixel a row of 128 bytes, as they come. The taps of a column are the same box of x, read
// from rows further on: its rows are the distance between the columns of one product, which reads them once.
// One thread asks for the boxes, two warpgroups multiply 64 filters each. add_parts adds up the parts in a fixed order.
//
// What limits it: no GPU has run it. Expected are the L2 cache, from which each column of taps brings x and g anew, and
// the turning of x and g.
#include "channels_last.cuh"
#include "hopper/copies.cuh"
#include "hopper/staged_image.cuh"
#include "hopper/warpgroup.cuh"
#include "kernel_grad_of_pixels.cuh"

constexpr int ROW_BYTES = 128, PATTERN = 1024, DEEP = 16;  // pixels of a product of matrices
constexpr int BOX_PIXELS = TILE_P * TILE_Q * TILE_IMAGES, BOX_ROW_BYTES = TILE_Q * TILE_IMAGES * ROW_BYTES;
constexpr int G_BYTES = BOX_PIXELS * ROW_BYTES;  // of 64 filters
// One box of x for all taps of a column, or one for each where a stride leaves gaps between what pixels see.
constexpr int X_BOXES = ONE_BOX ? 1 : TAPS_ASIDE, X_BYTES = BOX_ROWS * BOX_ROW_BYTES;
constexpr int TAP_DISTANCE = ONE_BOX ? TAP_ROWS * BOX_ROW_BYTES : X_BYTES;
constexpr int SLOT_BYTES = 2 * G_BYTES + X_BOXES * X_BYTES;
constexpr int COLUMNS = TAPS_ASIDE * CHUNK_CHANNELS;
static_assert(!IS_TF32, "TF32 factors would have to be contiguous along the pixels");
static_assert(THREADS == 384 && TILE_M == 128, "a warpgroup that asks for boxes, and two of 64 filters each");
static_assert(BOX_ROW_BYTES % PATTERN == 0, "a row of a box is whole patterns");
static_assert(BOX_PIXELS % DEEP == 0, "a box is a sum of whole products");
static_assert(RUN_STEPS % BOX_PIXELS == 0, "a part is a run");

extern __shared__ __align__(16) unsigned char shared[];
using BoxRing = Ring<BOXES, FOR_EMPTY_BOX, FOR_BOX>;

// Scratch memory: x, g, parts of dw with channels side by side, and sums of g for each filter and run of 64 pixels.
struct Parts {
    ImageExtents x, g;
    Acc* scratch;

    __device__ __forceinline__ Parts(Acc* scratch, const Conv2dShape& shape)
        : x{shape.N, shape.groups, shape.group_channels(), shape.H, shape.W, bool(X_IN_PLACE)},
          g{shape.N, shape.groups, shape.group_filters(), shape.P, shape.Q, bool(G_IN_PLACE)}, scratch(scratch) {}
    __device__ __forceinline__ unsigned* staged_x() const { return reinterpret_cast<unsigned*>(scratch); }
    __device__ __forceinline__ unsigned* staged_g() const { return staged_x() + x.words(); }
    __device__ __forceinline__ Acc* dw() const { return scratch + x.words() + g.words(); }
    __device__ __forceinline__ Acc* db(const Conv2dShape& shape, int parts) const {
        return dw() + parts * shape.w_size();
    }
};
// Where in a part tap (k,c,r,s) lies.
__device__ __forceinline__ Index part_at(const Conv2dShape& shape, int k, int c, int r, int s) {
    return ((Index(k) * shape.R + r) * shape.S + s) * shape.group_channels() + c;
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
            for (int pixel = 0; pixel < STAGED_PIXELS; ++pixel)
                sum += Factor::element(chunk[pixel][threadIdx.x / 2], threadIdx.x % 2);
            sums[Index(run) * shape.K + first + threadIdx.x] = sum;
        });
}

// What a block computes: filters and taps, and boxes of pixels.
struct Item {
    int s, first_r, first_c, first_k, group, part;

    __device__ __forceinline__ Item(int number, const Conv2dShape& shape, const Parts& parts) {
        const auto next = [&](int count) {
            const int at = number % count;
            number /= count;
            return at;
        };
        s = next(shape.S), first_r = next((shape.R + TAPS_ASIDE - 1) / TAPS_ASIDE) * TAPS_ASIDE;
        first_c = next(parts.x.chunks()) * CHUNK_CHANNELS;
        first_k = next((parts.g.channels + TILE_M - 1) / TILE_M) * TILE_M;
        group = next(shape.groups), part = number;
    }
};
struct PixelBox {
    int n, p, q;

    __device__ __forceinline__ PixelBox(int number, const Conv2dShape& shape) {
        const int across = (shape.Q + TILE_Q - 1) / TILE_Q, down = (shape.P + TILE_P - 1) / TILE_P;
        q = number % across * TILE_Q, p = number / across % down * TILE_P, n = number / across / down * TILE_IMAGES;
    }
    static __device__ __forceinline__ int count(const Conv2dShape& shape) {
        return (shape.Q + TILE_Q - 1) / TILE_Q * ((shape.P + TILE_P - 1) / TILE_P) *
               ((shape.N + TILE_IMAGES - 1) / TILE_IMAGES);
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
        if (threadIdx.x != 0) return;
        prefetch(x_map), prefetch(g_map);
        for (int number = blockIdx.x; number < items; number += gridDim.x) {
            const Item item(number, shape, parts);
            const int end = min((item.part + 1) * part_boxes, boxes);
            for (int box = item.part * part_boxes; box < end; ++box, turn.advance()) {
                const PixelBox at(box, shape);
                char* const slot = slots + turn.slot * SLOT_BYTES;
                Mbarrier& full = ring.full[turn.slot];
                ring.wait_until_empty(turn, note);
                full.arrive_and_expect(SLOT_BYTES);
                for (int half = 0; half < 2; ++half)
                    copy_box(slot + half * G_BYTES, g_map, full, item.first_k + half * 64, item.group, at.q, at.n, at.p);
                for (int tap = 0; tap < X_BOXES; ++tap)
                    copy_box(slot + 2 * G_BYTES + tap * X_BYTES, x_map, full, item.first_c, item.group,
                             shape.input_col(at.q, item.s), at.n, shape.input_row(at.p, item.first_r + tap));
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
            const Matrix g(slot + warpgroup * G_BYTES, PATTERN), x(slot + 2 * G_BYTES, PATTERN, TAP_DISTANCE);
            product.begin();
#pragma unroll
            for (int step = 0; step < BOX_PIXELS / DEEP; ++step, accumulate = true)
                product.add<true, true>(g + step * DEEP * ROW_BYTES, x + step * DEEP * ROW_BYTES, accumulate);
            product.commit();
            product.wait<1>();  // those of the slot before have ended
            if (lane == 0 && read) read->arrive();
            read = &ring.empty[turn.slot];
        }
        product.wait<0>();
        if (lane == 0) read->arrive();

        // Of two rows, 8 apart, two neighbours in each eight channels.
        Acc* const part = parts.dw() + item.part * shape.w_size();
#pragma unroll
        for (int i = 0; i < COLUMNS / 4; ++i) {  // a pair of sums
            const int m = item.first_k + warpgroup * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4 + i % 2 * 8;
            const int column = i / 2 * 8, r = item.first_r + column / CHUNK_CHANNELS;
            const int c = item.first_c + column % CHUNK_CHANNELS + lane % 4 * 2;
            if (m >= parts.g.channels || r >= shape.R) continue;
            Acc* const to = part + part_at(shape, item.group * parts.g.channels + m, c, r, item.s);
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (c + e < parts.x.channels) to[e] = product.sums[i / 2 * 4 + i % 2 * 2 + e];
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
