// Records the addresses of a block's threads, and replays its warps in lockstep; see traffic.cpp.
#pragma once

#include <stdint.h>

namespace checks::traffic {

bool recording();
void note_access(int thread, uint32_t site, int array, bool shared, int kind, unsigned bytes, uintptr_t address);
void note_basic_block(int thread, uint32_t site);
void end_part(long long block, int threads, bool is_end_of_block);  // at a barrier, and at the block's end

}  // namespace checks::traffic
