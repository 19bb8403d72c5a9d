// A tensor map on the CPU: what a box of a tensor is, in place of the 128 bytes that a GPU's driver makes of the same.
#pragma once

#include <stdint.h>

struct ConvbackpropTensorMap {
    const char* address;
    uint64_t strides[4];  // bytes from element to element, of all but the first dimension
    uint32_t sizes[5];
    uint32_t box[5];    // elements that it spans
    uint32_t steps[5];  // of which each steps-th is copied
    uint32_t element_bytes;
    uint32_t unused[6];
};
static_assert(sizeof(ConvbackpropTensorMap) == 128, "as on a GPU");
