// Tensor maps, under the rules that cuda.h's documentation states for what the package asks for: five dimensions of
// 16-bit numbers or float32, swizzled in rows of 128 bytes. What is made of one is what the CPU's runtime knows.

#include <string.h>

#include "../../convbackprop/cpu_runtime/tensor_map.h"
#include "stand_in.h"

namespace {

size_t element_bytes(CUtensorMapDataType type) {
    if (type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32) return 4;
    const bool is_known = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    require(is_known, CUDA_ERROR_INVALID_VALUE, "the stand-in has no tensor maps of this type");
    return 2;
}

}  // namespace

STAND_IN CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                         const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                         const cuuint32_t* steps, CUtensorMapInterleave interleave,
                                         CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                         CUtensorMapFloatOOBfill fill) {
    return call("cuTensorMapEncodeTiled", Needs::NOTHING, [&] {
        const auto check = [](bool holds, const char* why) { require(holds, CUDA_ERROR_INVALID_VALUE, why); };
        const size_t bytes = element_bytes(type);
        check(rank == 5 && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && swizzle == CU_TENSOR_MAP_SWIZZLE_128B &&
                  promotion == CU_TENSOR_MAP_L2_PROMOTION_L2_128B && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
              "the stand-in has no such tensor maps");
        check(size_t(map) % 64 == 0, "the address of a map is a multiple of 64");
        check(size_t(address) % 16 == 0, "a tensor's address is a multiple of 16");
        check(box[0] * bytes <= 128, "a row of a box is longer than what is swizzled together");
        check(box[0] * bytes % 16 == 0, "a row of a box is a multiple of 16 bytes");
        ConvbackpropTensorMap made{};
        made.address = static_cast<const char*>(address);
        made.element_bytes = cuuint32_t(bytes);
        for (int i = 0; i < 5; ++i) {
            check(sizes[i] >= 1 && sizes[i] <= (1ull << 32), "a dimension has 1 to 2^32 elements");
            check(box[i] >= 1 && box[i] <= 256, "a box spans 1 to 256 elements");
            check(steps[i] >= 1 && steps[i] <= 8, "a step is 1 to 8 elements");
            check(i > 0 || steps[i] == 1, "in the first dimension all elements are copied");
            made.sizes[i] = cuuint32_t(sizes[i]), made.box[i] = box[i], made.steps[i] = steps[i];
            if (i == 4) continue;
            check(strides[i] % 16 == 0 && strides[i] < (1ull << 40), "a stride is a multiple of 16 bytes below 2^40");
            made.strides[i] = strides[i];
        }
        memcpy(map, &made, sizeof made);
    });
}
