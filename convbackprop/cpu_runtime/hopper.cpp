// What device_calls.h says of sm_90: barriers in shared memory, copies that arrive at them, products of matrices there.
//
// Products are formed when they are waited for, copies in turn when they are asked for and when they are waited for. So
// a slot of shared memory that is given back too early may have new numbers before its products are formed, and one that
// is used too early the old ones: a wrong result shows it.
#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <math.h>
#include <string.h>
#include <vector>

#include "block_runner.h"
#include "tensor_map.h"

namespace {

[[noreturn]] void fail(const char* why) { current_runner()->stop(why); }

// ------------------------------------------------------------------------------------------------------- mbarriers
struct Mbarrier {
    int32_t bytes;      // expected, and not there
    uint16_t arrivals;  // of a phase
    uint16_t awaited : 15, phase : 1;
};
static_assert(sizeof(Mbarrier) == 8, "as on a GPU");

bool has_ended(const void* barrier, unsigned parity) {
    return static_cast<const Mbarrier*>(barrier)->phase != (parity & 1);
}

void end_phase_if_complete(Mbarrier* barrier) {
    if (barrier->awaited || barrier->bytes) return;
    barrier->phase ^= 1;
    barrier->awaited = barrier->arrivals;
    current_runner()->wake_at_mbarrier(barrier);
}

void bytes_have_come(void* barrier, size_t bytes) {
    auto* const at = static_cast<Mbarrier*>(barrier);
    at->bytes -= int32_t(bytes);
    end_phase_if_complete(at);
}

// ---------------------------------------------------------------------------------------------------------- copies
struct LateCopy {
    void* barrier;
    std::function<void()> copy;
};

// Of the block that this OS thread runs.
struct Copies {
    bool is_late = false;  // the next one
    std::vector<LateCopy> late;
};

Copies& own_copies() {
    static thread_local Copies copies;
    return copies;
}

void ask_for(void* barrier, std::function<void()> copy) {
    Copies& own = own_copies();
    if ((own.is_late = !own.is_late) || current_runner()->is_awaited(barrier))
        copy();
    else
        own.late.push_back({barrier, std::move(copy)});
}

void make_late_copies(const void* barrier) {
    auto& late = own_copies().late;
    for (size_t i = 0; i < late.size();)
        if (late[i].barrier == barrier) {
            const auto copy = std::move(late[i].copy);
            late.erase(late.begin() + i);
            copy();
        } else
            ++i;
}

// Units of 16 bytes are exchanged within 128 bytes, by where these lie in a pattern of 1024.
uintptr_t swizzled(uintptr_t address) { return address ^ (address >> 7 & 7) << 4; }

// The elements of a box lie in order, swizzled. What lies outside the tensor is zeros.
void copy_box(char* to, const ConvbackpropTensorMap& of, const std::array<int, 5>& at, void* barrier) {
    uint32_t counts[5];
    for (int i = 0; i < 5; ++i) counts[i] = (of.box[i] + of.steps[i] - 1) / of.steps[i];
    if (uintptr_t(to) % 1024 || counts[0] * of.element_bytes != 128)
        fail("a box that is not rows of 128 bytes from a multiple of 1024 on");
    uintptr_t next = uintptr_t(to);
    for (uint32_t e = 0; e < counts[4]; ++e)
        for (uint32_t d = 0; d < counts[3]; ++d)
            for (uint32_t c = 0; c < counts[2]; ++c)
                for (uint32_t b = 0; b < counts[1]; ++b) {
                    const uint32_t index[] = {0, b, c, d, e};
                    const char* from = of.address;
                    bool exists = true;
                    for (int i = 1; i < 5; ++i) {
                        const int64_t coordinate = at[i] + int64_t(index[i]) * of.steps[i];
                        exists = exists && coordinate >= 0 && coordinate < int64_t(of.sizes[i]);
                        from += coordinate * int64_t(of.strides[i - 1]);
                    }
                    const int64_t begin = std::max(at[0], 0), end = std::min(int64_t(at[0]) + counts[0], int64_t(of.sizes[0]));
                    char values[128] = {};
                    if (exists && begin < end)
                        memcpy(values + (begin - at[0]) * of.element_bytes, from + begin * of.element_bytes,
                               (end - begin) * of.element_bytes);
                    for (int unit = 0; unit < 8; ++unit, next += 16)
                        memcpy(reinterpret_cast<void*>(swizzled(next)), values + 16 * unit, 16);
                }
    bytes_have_come(barrier, next - uintptr_t(to));
}

// -------------------------------------------------------------------------------------------------------- products
float number(const void* at, ConvbackpropFactor factor) {
    uint32_t bits;
    if (factor == FACTOR_TF32) {
        memcpy(&bits, at, 4);
        bits &= 0xffffe000;
    } else {
        uint16_t half;
        memcpy(&half, at, 2);
        bits = uint32_t(half) << 16;
        if (factor == FACTOR_FLOAT16) {
            const uint32_t sign = bits & 0x80000000, exponent = half >> 10 & 31, fraction = half & 1023;
            if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
            bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
        }
    }
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// A matrix of rows of 128 bytes, as its descriptor has it.
struct Matrix {
    uintptr_t start;
    size_t leading, stride;
    int transposed;

    explicit Matrix(const ConvbackpropMatrix& of)
        : start(uintptr_t(of.start)), leading(of.descriptor >> 16 << 4 & 0x3ffff),
          stride(of.descriptor >> 32 << 4 & 0x3ffff), transposed(of.transposed) {
        if ((of.descriptor << 4 & 0x3ffff) != (start & 0x3ffff)) fail("a descriptor of wgmma begins elsewhere");
        if (of.descriptor >> 49 != 1 << 13) fail("a descriptor of wgmma is not one of rows of 128 bytes");
    }
};

// Element (outer, k) of an operand.
const void* element(const Matrix& of, int outer, int k, int bytes) {
    const int along = of.transposed ? outer : k, across = of.transposed ? k : outer, row = 128 / bytes;
    const size_t offset = across / 8 * of.stride + across % 8 * 128 + along / row * of.leading + along % row * bytes;
    return reinterpret_cast<const void*>(swizzled(of.start + offset));
}

struct Product {
    float* sums;
    Matrix a, b;
    int columns;
    ConvbackpropFactor factor;
    bool accumulate;
};

// sums[4 i + 2 j + e]: row 16 warp + lane / 4 + 8 j, column 8 i + 2 (lane % 4) + e. Cut, as tensor cores cut.
void form(const Product& product, int thread) {
    constexpr int MOST = 16;
    const int bytes = product.factor == FACTOR_TF32 ? 4 : 2, depth = 32 / bytes;
    const int first_row = thread / LANES % 4 * 16 + thread % LANES / 4, first_column = thread % 4 * 2;
    float left[2][MOST];
    for (int j = 0; j < 2; ++j)
        for (int k = 0; k < depth; ++k)
            left[j][k] = number(element(product.a, first_row + 8 * j, k, bytes), product.factor);
    for (int column = 0; column < product.columns / 4; ++column) {
        float right[MOST];
        for (int k = 0; k < depth; ++k)
            right[k] = number(element(product.b, column / 2 * 8 + first_column + column % 2, k, bytes), product.factor);
        for (int j = 0; j < 2; ++j) {
            float& to = product.sums[column / 2 * 4 + 2 * j + column % 2];
            double sum = product.accumulate ? to : 0;
            for (int k = 0; k < depth; ++k) sum += double(left[j][k]) * right[k];
            to = float(sum);
            if (isfinite(to) && fabs(double(to)) > fabs(sum)) to = nextafterf(to, 0);
        }
    }
}

struct Groups {
    std::deque<std::vector<Product>> closed;  // the oldest first
    std::vector<Product> open;
};

// Of the block that this OS thread runs, by CUDA thread.
std::vector<Groups>& all_groups() {
    static thread_local std::vector<Groups> groups;
    return groups;
}

Groups& own_groups() {
    auto& groups = all_groups();
    const size_t thread = current_runner()->thread();
    if (groups.size() <= thread) groups.resize(thread + 1);
    return groups[thread];
}

}  // namespace

void forget_async_work() {
    all_groups().clear();
    own_copies() = {};
}

extern "C" {

void convbackprop_mbarrier_init(void* barrier, unsigned arrivals) {
    *static_cast<Mbarrier*>(barrier) = {0, uint16_t(arrivals), uint16_t(arrivals), 0};
}

void convbackprop_mbarrier_arrive(void* barrier, unsigned expected_bytes) {
    auto* const at = static_cast<Mbarrier*>(barrier);
    if (!at->awaited) fail("a thread arrives at an mbarrier at which nobody is awaited");
    at->bytes += int32_t(expected_bytes);
    --at->awaited;
    end_phase_if_complete(at);
}

void convbackprop_mbarrier_wait(const void* barrier, unsigned parity) {
    make_late_copies(barrier);
    current_runner()->wait_at_mbarrier(barrier, has_ended, parity);
}

void convbackprop_copy_bytes(void* to, const void* from, unsigned bytes, void* barrier) {
    if ((uintptr_t(to) | uintptr_t(from) | bytes) % 16) fail("a copy of addresses or bytes that 16 does not divide");
    ask_for(barrier, [=] {
        memcpy(to, from, bytes);
        bytes_have_come(barrier, bytes);
    });
}

void convbackprop_copy_box(void* to, const void* map, const int* at, void* barrier) {
    ConvbackpropTensorMap of;
    memcpy(&of, map, sizeof of);
    const std::array<int, 5> first = {at[0], at[1], at[2], at[3], at[4]};
    ask_for(barrier, [=] { copy_box(static_cast<char*>(to), of, first, barrier); });
}

void convbackprop_wgmma(float* sums, ConvbackpropMatrix a, ConvbackpropMatrix b, int columns, ConvbackpropFactor factor,
                        int accumulate) {
    own_groups().open.push_back({sums, Matrix(a), Matrix(b), columns, factor, accumulate != 0});
}

void convbackprop_wgmma_commit(void) {
    Groups& mine = own_groups();
    mine.closed.push_back(std::move(mine.open));
    mine.open.clear();
}

void convbackprop_wgmma_wait(int groups_left) {
    Groups& mine = own_groups();
    const int thread = current_runner()->thread();
    for (; mine.closed.size() > size_t(groups_left); mine.closed.pop_front())
        if (!is_arithmetic_left_out())
            for (const Product& product : mine.closed.front()) form(product, thread);
}
}
