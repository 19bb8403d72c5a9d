// A tile of pixels of kernel_grad's tensor_core: groups of STEPS_AT_ONCE steps, between which the next tile is brought.
#pragma once
#include "halo_loader.cuh"

constexpr int WARPS_C = TILE_C / 16;
constexpr int TILE_STEPS = TILE_PIXELS / Factor::K, STEP_GROUPS = TILE_STEPS / STEPS_AT_ONCE;
static_assert(IS_TF32 || TILE_C == CHUNKS * CHUNK_STEPS, "16-bit channels are the chunks of a pixel");
static_assert(!HALO || THREADS == WARPS_M * WARPS_C * TAPS_DOWN * 32, "warps make the tile");
static_assert(!HALO || STEP_GROUPS * STEPS_AT_ONCE * Factor::K == TILE_PIXELS, "a tile is groups of steps");
