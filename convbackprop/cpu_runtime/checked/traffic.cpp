// What a GPU's memory system would be asked for, counted from the addresses of each thread.
//
// A CUDA thread runs alone here, so its accesses are recorded, and between two barriers each warp is played back in
// lockstep: of its lanes those whose next step has the lowest address of code go on, together. Basic blocks are steps
// too, so that lanes that take another branch, or leave a loop earlier, meet again where the branches do.
//
// Of a request (one instruction of a warp) the 32-byte sectors are counted that it touches in global memory, or the
// passes over the 32 banks of shared memory: lanes that want different words of one bank take turns, where a request of
// 8 (16) bytes a lane is served half (a quarter) of a warp at a time, and brings no word twice. Source: CUDA C++
// Programming Guide, "Device Memory Accesses" and "Shared Memory"; that a word is not brought again for another quarter
// is not documented, but matrix products could not be as fast as they are if it were.
#include "traffic.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "checks.h"

namespace checks::traffic {
namespace {

constexpr int LANES = 32, MAX_THREADS = 1024;
constexpr int BASIC_BLOCK = -1;

struct Event {
    uint32_t site;
    int array;  // or BASIC_BLOCK
    bool shared;
    uint8_t kind, bytes;
    uintptr_t address;
};

struct Lane {
    int number;
    uintptr_t address;
};

bool is_recording;
std::vector<Event> events[MAX_THREADS];
long long accesses, requests, current_block;
int most_kept;
std::vector<ConvbackpropLaneAccess> kept;
std::map<std::tuple<uint32_t, bool, int>, ConvbackpropSiteTraffic> sites;
std::map<int, ConvbackpropArrayTraffic> arrays;
std::map<int, std::vector<uintptr_t>> loaded, stored;  // sectors of this block, by array

// How many different blocks of `unit` bytes the lanes touch.
long long distinct(const std::vector<Lane>& lanes, unsigned bytes, unsigned unit) {
    static std::vector<uintptr_t> touched;
    touched.clear();
    for (const Lane& lane : lanes)
        for (uintptr_t i = lane.address / unit; i <= (lane.address + bytes - 1) / unit; ++i) touched.push_back(i);
    std::sort(touched.begin(), touched.end());
    return std::unique(touched.begin(), touched.end()) - touched.begin();
}

void count_passes(const std::vector<Lane>& lanes, unsigned bytes, ConvbackpropSiteTraffic& site) {
    const int at_once = bytes <= 4 ? LANES : bytes == 8 ? LANES / 2 : LANES / 4;
    std::set<uintptr_t> brought;
    for (int first = 0; first < LANES; first += at_once) {
        int words[32] = {};  // new ones, of each bank
        for (const Lane& lane : lanes)
            if (first <= lane.number && lane.number < first + at_once)
                for (uintptr_t word = lane.address / 4; word <= (lane.address + bytes - 1) / 4; ++word)
                    words[word % 32] += brought.insert(word).second;
        const int passes = *std::max_element(words, words + 32);
        site.passes += passes;
        site.least_passes += passes > 0;
    }
}

void count_request(const Event& event, const std::vector<Lane>& lanes) {
    auto& site = sites[{event.site, event.shared, event.kind}];
    site.site = event.site;
    site.shared = event.shared;
    site.kind = event.kind;
    site.bytes = std::max<unsigned>(site.bytes, event.bytes);
    ++site.requests;
    site.lanes += (long long)lanes.size();
    if (event.shared) {
        count_passes(lanes, event.bytes, site);
    } else {
        site.sectors += distinct(lanes, event.bytes, 32);
        site.least_sectors += (distinct(lanes, event.bytes, 1) + 31) / 32;
    }
}

void keep_request(const Event& event, const std::vector<Lane>& lanes, int first_thread) {
    if (int(kept.size()) >= most_kept) return;
    ++requests;
    for (const Lane& lane : lanes)
        kept.push_back({requests, current_block, (long long)lane.address, event.site, first_thread + lane.number,
                        event.array, event.shared, event.kind, event.bytes});
}

void play_back(std::vector<Event>* warp, int first_thread) {
    size_t next[LANES] = {};
    std::vector<Lane> lanes;
    for (;;) {
        const Event* lowest = nullptr;
        for (int i = 0; i < LANES; ++i)
            if (next[i] < warp[i].size() && (!lowest || warp[i][next[i]].site < lowest->site)) lowest = &warp[i][next[i]];
        if (!lowest) return;
        const Event event = *lowest;
        lanes.clear();
        for (int i = 0; i < LANES; ++i)
            if (next[i] < warp[i].size() && warp[i][next[i]].site == event.site)
                lanes.push_back({i, warp[i][next[i]++].address});
        if (event.array == BASIC_BLOCK) continue;
        count_request(event, lanes);
        keep_request(event, lanes, first_thread);
    }
}

long long count_distinct(std::vector<uintptr_t>& sectors) {
    std::sort(sectors.begin(), sectors.end());
    return std::unique(sectors.begin(), sectors.end()) - sectors.begin();
}

}  // namespace

bool recording() { return is_recording; }

void note_access(int thread, uint32_t site, int array, bool shared, int kind, unsigned bytes, uintptr_t address) {
    ++accesses;
    events[thread].push_back({site, array, shared, uint8_t(kind), uint8_t(bytes), address});
    if (shared) return;
    auto& asked = arrays[array];
    asked.array = array;
    (kind == 0 ? asked.loaded_bytes : asked.stored_bytes) += bytes;
    auto& sectors = (kind == 0 ? loaded : stored)[array];
    for (uintptr_t sector = address / 32; sector <= (address + bytes - 1) / 32; ++sector)
        if (sectors.empty() || sectors.back() != sector) sectors.push_back(sector);
}

void note_basic_block(int thread, uint32_t site) {
    if (is_recording) events[thread].push_back({site, BASIC_BLOCK, false, 0, 0, 0});
}

void end_part(long long block, int threads, bool is_end_of_block) {
    if (!is_recording) return;
    current_block = block;
    for (int first = 0; first < threads; first += LANES) play_back(events + first, first);
    for (int i = 0; i < threads; ++i) events[i].clear();
    if (!is_end_of_block) return;
    for (auto& [array, sectors] : loaded) arrays[array].loaded_sectors += count_distinct(sectors);
    for (auto& [array, sectors] : stored) arrays[array].stored_sectors += count_distinct(sectors);
    loaded.clear();
    stored.clear();
}

}  // namespace checks::traffic

extern "C" {

void convbackprop_checks_record_traffic(int on) {
    using namespace checks::traffic;
    is_recording = on;
    accesses = requests = 0;
    kept.clear();
    for (auto& thread : events) thread.clear();
    sites.clear();
    arrays.clear();
    loaded.clear();
    stored.clear();
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
    for (const auto& [key, array] : checks::traffic::arrays)
        if (count++ < most) *to++ = array;
    return count;
}
}
