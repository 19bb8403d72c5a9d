// Which accesses to the same bytes are ordered, and which are a race: happens-before, as CUDA defines it.
//
// Time is counted in synchronisations. Two accesses of one block are ordered if a barrier of the block lies between
// them, or, in one warp, a __syncwarp whose mask has both lanes: so for each pair of lanes it is kept up to when the
// one knows what the other did. (Shuffles and votes order nothing.) Accesses of two blocks are never ordered.
//
// Of each granule of memory the last write is kept, and the reads since then of the two warps that read last: if any
// warp's read races with a write, so does that of one of those two. A pattern that orders blocks or warps by its own
// means (__threadfence and a counter) is not understood: it is reported although it is right.
#pragma once

#include <stdint.h>

#include <algorithm>

#include "../block_runner.h"

namespace checks {

using Time = uint32_t;
using Site = uint32_t;  // offset in the kernel's shared object; 0: none

struct Reads {  // of one warp
    Time earliest = 0;
    uint32_t lanes = 0;
    int16_t warp = -1;
    Site site = 0;
};

struct Granule {
    Time written_at = 0;
    Site writer_site = 0;
    int16_t writer = -1;  // the thread; -1: nobody
    uint8_t write_was_atomic = 0, reads_were_atomic = 0;
    uint8_t written_bytes = 0, read_bytes = 0;  // of this granule, a bit each
    int64_t writer_block = -1;
    Reads reads[2];  // the latest first
    int64_t reader_block = -1, other_reader_block = -1;
};

// Who met whom in the block that is running.
class Order {
  public:
    void begin_block(int warps) {
        barrier_ = block_start_ = ++now_;
        std::fill(&known_[0][0][0], &known_[0][0][0] + warps * LANES * LANES, now_);
    }
    void barrier() { barrier_ = ++now_; }
    void warp(int number, uint32_t lanes) {
        ++now_;
        Time all[LANES] = {};
        for (int a = 0; a < LANES; ++a)
            if (lanes >> a & 1)
                for (int b = 0; b < LANES; ++b) all[b] = std::max(all[b], known_[number][a][b]);
        for (int a = 0; a < LANES; ++a)
            if (lanes >> a & 1)
                for (int b = 0; b < LANES; ++b) known_[number][a][b] = lanes >> b & 1 ? now_ : all[b];
    }

    Time now() const { return now_; }
    Time block_start() const { return block_start_; }

    // Whether what `other` did at that time comes before what `thread` does now.
    bool is_before(Time time, int other, int thread) const {
        if (time < barrier_ || other == thread) return true;
        return other / LANES == thread / LANES && time < known_[thread / LANES][thread % LANES][other % LANES];
    }
    // A lane of `reads` whose read is not ordered with what `thread` does now; -1: there is none.
    int unordered_reader(const Reads& reads, int thread) const {
        for (uint32_t rest = reads.lanes; rest; rest &= rest - 1) {
            const int reader = reads.warp * LANES + __builtin_ctz(rest);
            if (!is_before(reads.earliest, reader, thread)) return reader;
        }
        return -1;
    }

    // Remembers that `thread` reads a granule now.
    void note_read(Granule& granule, int thread, Site site) const {
        const int warp = thread / LANES;
        const uint32_t lane = 1u << thread % LANES;
        if (granule.reads[0].warp != warp) {
            std::swap(granule.reads[0], granule.reads[1]);
            if (granule.reads[0].warp != warp) granule.reads[0] = {now_, 0, int16_t(warp), site};
        }
        Reads& reads = granule.reads[0];
        // Earlier reads are forgotten where they are ordered with this one: whoever races with them races with it.
        if (reads.earliest != now_ && unordered_reader(reads, thread) < 0) reads = {now_, 0, int16_t(warp), site};
        reads.lanes |= lane;
    }

  private:
    Time now_ = 0, barrier_ = 0, block_start_ = 0;
    Time known_[MAX_WARPS][LANES][LANES];  // [warp][a][b]: a knows what b did before then
};

}  // namespace checks
