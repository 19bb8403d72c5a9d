// What a GPU's memory system would be asked for, counted from the addresses of each thread.
//
// A CUDA thread runs alone here, so its accesses are recorded, and between two barriers each warp is played back in
// lockstep: of its lanes those whose next step has the lowest address of code go on, together. Basic blocks are steps
// too, so that lanes that take another branch, or leave a loop earlier, meet again where the branches do.
//
// No address follows from a product: mma and wgmma are left out (only_addresses), their sums stay what they were.
//
// Of a request (one instruction of a warp) the 32-byte sectors are counted that it touches in global memory, or the
// passes over the 32 banks of shared memory: lanes that want different words of one bank take turns, where a request of
// 8 (16) bytes a lane is served half (a quarter) of a warp at a time, and brings no word twice. Source: CUDA C++
// Programming Guide, "Device Memory Accesses" and "Shared Memory"; that a word is not brought again for another quarter
// is not documented, but matrix products could not be as fast as they are if it were.
#include "traffic.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "checks.h"

namespace checks::traffic {

State state;

namespace {

constexpr int LANES = 32, MAX_THREADS = 1024, BANKS = 32;

// What lanes ask for together, in their order.
struct Request {
    int count = 0;
    int lanes[LANES];
    uintptr_t addresses[LANES];
    Access first;

    void add(int lane, const Access& access) {
        if (count == 0) first = access;
        lanes[count] = lane;
        addresses[count++] = access.address;
    }
};

// Sectors of an array that a block has touched.
struct Sectors {
    std::vector<uint64_t> bits;
    std::vector<uintptr_t> touched;

    void touch(uintptr_t sector) {
        uint64_t& word = bits[sector / 64];
        const uint64_t bit = uint64_t(1) << sector % 64;
        if (word & bit) return;
        word |= bit;
        touched.push_back(sector);
    }
    long long take() {
        const long long count = (long long)touched.size();
        for (uintptr_t sector : touched) bits[sector / 64] = 0;
        touched.clear();
        return count;
    }
};

struct Array {
    uintptr_t first_sector = 0, sectors = 0;
    ConvbackpropArrayTraffic counts = {};
    Sectors loaded, stored;
};

Thread threads_of_block[MAX_THREADS];
long long accesses, requests, current_block;
int most_kept;
std::vector<ConvbackpropLaneAccess> kept;
using SiteKey = std::tuple<uint32_t, bool, int>;
std::map<SiteKey, ConvbackpropSiteTraffic> sites;
std::vector<Array> arrays;  // by number

// The counts of a site. Those that were asked for lately are not looked up again.
ConvbackpropSiteTraffic& counts_of(uint32_t site, const Access& access) {
    static ConvbackpropSiteTraffic* lately[1024];
    if (sites.empty()) std::fill(std::begin(lately), std::end(lately), nullptr);
    auto*& found = lately[site % std::size(lately)];
    if (!found || found->site != site || found->shared != access.shared || found->kind != access.kind) {
        found = &sites[{site, access.shared, access.kind}];
        found->site = site;
        found->shared = access.shared;
        found->kind = access.kind;
    }
    return *found;
}

// How many different sectors the lanes touch, and how many the different bytes would fill.
void count_sectors(const Request& request, ConvbackpropSiteTraffic& site) {
    uintptr_t sorted[LANES], next_sector = 0, next_byte = 0;
    std::copy_n(request.addresses, request.count, sorted);
    if (!std::is_sorted(sorted, sorted + request.count)) std::sort(sorted, sorted + request.count);
    long long sectors = 0, bytes = 0;
    for (int i = 0; i < request.count; ++i) {
        const uintptr_t end = sorted[i] + request.first.bytes, end_sector = (end - 1) / 32 + 1;
        const uintptr_t sector = std::max(next_sector, sorted[i] / 32), byte = std::max(next_byte, sorted[i]);
        sectors += end_sector - std::min(sector, end_sector);
        bytes += end - byte;
        next_sector = end_sector;
        next_byte = end;
    }
    site.sectors += sectors;
    site.least_sectors += (bytes + 31) / 32;
}

void count_passes(const Request& request, ConvbackpropSiteTraffic& site) {
    constexpr int MOST_WORDS = 3 * LANES;  // of a bank: a lane asks for 255 bytes at most
    const unsigned bytes = request.first.bytes;
    const int at_once = bytes <= 4 ? LANES : bytes == 8 ? LANES / 2 : LANES / 4;
    uintptr_t brought[BANKS][MOST_WORDS];
    uint8_t counts[BANKS] = {};
    for (int first = 0, i = 0; first < LANES; first += at_once) {
        uint8_t before[BANKS];
        memcpy(before, counts, sizeof counts);
        for (; i < request.count && request.lanes[i] < first + at_once; ++i) {
            const uintptr_t end = (request.addresses[i] + bytes - 1) / 4;
            for (uintptr_t word = request.addresses[i] / 4; word <= end; ++word) {
                uintptr_t* const own = brought[word % BANKS];
                uint8_t& count = counts[word % BANKS];
                if (std::find(own, own + count, word) == own + count) own[count++] = word;
            }
        }
        int passes = 0;
        for (int bank = 0; bank < BANKS; ++bank) passes = std::max(passes, counts[bank] - before[bank]);
        site.passes += passes;
        site.least_passes += passes > 0;
    }
}

void count(const Request& request, uint32_t at) {
    auto& site = counts_of(at, request.first);
    site.bytes = std::max<unsigned>(site.bytes, request.first.bytes);
    ++site.requests;
    site.lanes += request.count;
    if (request.first.shared)
        count_passes(request, site);
    else
        count_sectors(request, site);
}

void keep(const Request& request, uint32_t site, int first_thread) {
    if (int(kept.size()) >= most_kept) return;
    ++requests;
    const Access& first = request.first;
    for (int i = 0; i < request.count; ++i)
        kept.push_back({requests, current_block, (long long)request.addresses[i], site,
                        first_thread + request.lanes[i], first.array, first.shared, first.kind, first.bytes});
}

// A warp on its way through what its lanes have done.
class Warp {
  public:
    explicit Warp(int first_thread) : first_thread_(first_thread) {
        for (int i = 0; i < LANES; ++i) {
            const Thread& of = threads_of_block[first_thread + i];
            lanes_[count_++] = {i, of.steps.begin(), of.steps.end(), of.accesses.begin()};
        }
        forget_those_at_end();
    }

    void play_back() {
        size_t most = 1;  // that are looked at in advance: few where lanes part, or it would be in vain
        while (count_) {
            const size_t steps = steps_in_common(most);
            most = steps == most ? std::min<size_t>(2 * most, 256) : 1;
            steps ? go_on_together(steps) : go_on_apart();
            forget_those_at_end();
        }
    }

  private:
    struct Lane {
        int number;
        const uint32_t *step, *end;
        const Access* access;
    };
    Lane lanes_[LANES];
    int count_ = 0;
    const int first_thread_;

    void forget_those_at_end() {
        count_ = int(std::remove_if(lanes_, lanes_ + count_, [](const Lane& lane) { return lane.step == lane.end; }) -
                     lanes_);
    }

    size_t steps_in_common(size_t most) const {
        const uint32_t* const from = lanes_[0].step;
        size_t common = std::min(most, size_t(lanes_[0].end - from));
        for (int i = 1; i < count_ && common; ++i) {
            common = std::min(common, size_t(lanes_[i].end - lanes_[i].step));
            if (memcmp(from, lanes_[i].step, common * sizeof *from) != 0)
                common = std::mismatch(from, from + common, lanes_[i].step).first - from;
        }
        return common;
    }

    void go_on_together(size_t steps) {
        for (size_t k = 0; k < steps; ++k) {
            const uint32_t step = lanes_[0].step[k];
            if (!(step & 1)) continue;
            Request request;
            for (int i = 0; i < count_; ++i) request.add(lanes_[i].number, *lanes_[i].access++);
            deal_with(request, step >> 1);
        }
        for (int i = 0; i < count_; ++i) lanes_[i].step += steps;
    }

    void go_on_apart() {
        const auto is_before = [](const Lane& a, const Lane& b) { return *a.step < *b.step; };
        const uint32_t step = *std::min_element(lanes_, lanes_ + count_, is_before)->step;
        Request request;
        for (Lane* lane = lanes_; lane != lanes_ + count_; ++lane) {
            if (*lane->step != step) continue;
            ++lane->step;
            if (step & 1) request.add(lane->number, *lane->access++);
        }
        if (step & 1) deal_with(request, step >> 1);
    }

    void deal_with(const Request& request, uint32_t site) const {
        count(request, site);
        keep(request, site, first_thread_);
    }
};

}  // namespace

void note_global(const Access& access, size_t bytes) {
    Array& array = arrays[access.array];
    (access.kind == 0 ? array.counts.loaded_bytes : array.counts.stored_bytes) += bytes;
    Sectors& sectors = access.kind == 0 ? array.loaded : array.stored;
    if (sectors.bits.empty()) sectors.bits.resize(array.sectors / 64 + 1);
    for (uintptr_t sector = access.address / 32; sector <= (access.address + bytes - 1) / 32; ++sector)
        sectors.touch(sector - array.first_sector);
}

void run_as(int thread) { state.thread = state.is_recording && thread >= 0 ? &threads_of_block[thread] : nullptr; }

void begin_launch(uintptr_t code, uintptr_t shared_memory) {
    state.code = code;
    state.shared_memory = shared_memory;
    state.last_shared = state.last_loaded = state.last_stored = {};
}

void add_array(const Place& place, bool shared, int kind) {
    (shared ? state.last_shared : kind == 0 ? state.last_loaded : state.last_stored) = place;
    if (arrays.size() <= size_t(place.array)) arrays.resize(place.array + 1);
    Array& array = arrays[place.array];
    array.first_sector = place.begin / 32;
    array.sectors = place.end / 32 - place.begin / 32 + 1;
    array.counts.array = place.array;
}

void end_part(long long block, int threads, bool is_end_of_block) {
    if (!state.is_recording) return;
    current_block = block;
    for (int first = 0; first < threads; first += LANES) Warp(first).play_back();
    for (int i = 0; i < threads; ++i) {
        accesses += threads_of_block[i].accesses.end() - threads_of_block[i].accesses.begin();
        threads_of_block[i].steps.clear();
        threads_of_block[i].accesses.clear();
    }
    if (!is_end_of_block) return;
    for (Array& array : arrays) {
        array.counts.loaded_sectors += array.loaded.take();
        array.counts.stored_sectors += array.stored.take();
    }
}

}  // namespace checks::traffic

extern "C" {

void convbackprop_checks_record_traffic(int on) {
    using namespace checks::traffic;
    state.is_recording = on;
    accesses = requests = 0;
    kept.clear();
    for (Thread& thread : threads_of_block) {
        thread.steps.clear();
        thread.accesses.clear();
    }
    sites.clear();
    arrays.clear();
}

long long convbackprop_checks_recorded_accesses(void) { return checks::traffic::accesses; }

void convbackprop_checks_keep_accesses(int most) { checks::traffic::most_kept = most; }

int convbackprop_checks_kept_accesses(ConvbackpropLaneAccess* to, int most) {
    const auto& kept = checks::traffic::kept;
    std::copy_n(kept.begin(), std::min<size_t>(kept.size(), most), to);
    return int(kept.size());
}

int convbackprop_checks_site_traffic(ConvbackpropSiteTraffic* to, int most) {
    int count = 0;
    for (const auto& [key, site] : checks::traffic::sites)
        if (count++ < most) *to++ = site;
    return count;
}

int convbackprop_checks_array_traffic(ConvbackpropArrayTraffic* to, int most) {
    int count = 0;
    for (const auto& array : checks::traffic::arrays)
        if (array.counts.loaded_bytes + array.counts.stored_bytes > 0 && count++ < most) *to++ = array.counts;
    return count;
}
}
