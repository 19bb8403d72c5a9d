// The checks of each access to memory; see checks.h.
#include "checks.h"

#include <link.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "../block_runner.h"
#include "races.h"
#include "traffic.h"

namespace checks {
namespace {

using Address = uintptr_t;

// An access so far from every array may not be tried: it would be the host's memory.
constexpr Address GUARD = 4096;

struct Array {
    int kind;
    Address begin, end;  // of a shared array: counted from the beginning of the object's thread-local memory
    int granule;         // bytes that a race is looked for in
    std::vector<Granule> granules;
    std::vector<uint8_t> initialised;  // a byte for each byte
    Time begun = 0;                    // of a shared one: which block's it is
};

std::vector<Array> arrays;
Array* last_array;
std::map<std::tuple<int, Site, Site, int>, ConvbackpropFinding> findings;
uint64_t start_order;

Order order;
int thread = -1, thread_count;  // -1: the runtime is at work
int64_t block;
size_t dynamic_bytes;

// The kernel's shared object, and where this OS thread has its thread-local memory.
struct Module {
    Address begin = 0, end = 0, base = 0, tls_begin = 0, tls_end = 0;
} module;
std::vector<std::pair<Address, Address>> own_memory;

extern "C" void* __tls_get_addr(size_t*);

int find_module(dl_phdr_info* info, size_t, void* entry) {
    Module found{~Address(0), 0, info->dlpi_addr, 0, 0};
    bool has_entry = false;
    size_t tls_bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& part = info->dlpi_phdr[i];
        if (part.p_type == PT_TLS) tls_bytes = part.p_memsz;
        if (part.p_type != PT_LOAD) continue;
        const Address begin = info->dlpi_addr + part.p_vaddr, end = begin + part.p_memsz;
        found.begin = std::min(found.begin, begin);
        found.end = std::max(found.end, end);
        has_entry |= begin <= Address(entry) && Address(entry) < end;
    }
    if (!has_entry) return 0;
    if (tls_bytes) {
        size_t index[2] = {info->dlpi_tls_modid, 0};
        found.tls_begin = Address(__tls_get_addr(index));
        found.tls_end = found.tls_begin + tls_bytes;
    }
    module = found;
    return 1;
}

bool is_shared(const Array& array) { return array.kind == ARRAY_SHARED || array.kind == ARRAY_DYNAMIC_SHARED; }
Address begin_of(const Array& array) { return array.begin + (is_shared(array) ? module.tls_begin : 0); }
Address end_of(const Array& array) {
    return array.kind == ARRAY_DYNAMIC_SHARED ? begin_of(array) + dynamic_bytes
                                              : array.end + (is_shared(array) ? module.tls_begin : 0);
}

Array* array_with(Address address) {
    if (last_array && begin_of(*last_array) <= address && address < end_of(*last_array)) return last_array;
    for (Array& array : arrays)
        if (begin_of(array) <= address && address < end_of(array)) return last_array = &array;
    return nullptr;
}

Array* nearest_array(Address address, Address& distance) {
    Array* nearest = nullptr;
    distance = ~Address(0);
    for (Array& array : arrays) {
        if (array.kind == ARRAY_SILENT) continue;
        const Address begin = begin_of(array), end = end_of(array);
        const Address apart = address < begin ? begin - address : address - std::min(address, end);
        if (apart < distance) distance = apart, nearest = &array;
    }
    return nearest;
}

Site site_of(const void* site) { return site ? Site(Address(site) - module.base) : 0; }

ConvbackpropFinding& report(int kind, Site site, const Array* array, Site other_site = 0) {
    const int number = array ? int(array - arrays.data()) : -1;
    auto& finding = findings[{kind, site, other_site, number}];
    if (finding.count++ == 0) {
        finding.kind = kind;
        finding.site = site;
        finding.other_site = other_site;
        finding.array = number;
        finding.thread = thread;
        finding.block = block;
        finding.other_thread = -1;
        finding.other_block = -1;
    }
    return finding;
}

// What threads that wait have in common is told by one of them: the one that runs may be none of them, or none may run.
void report_waiting(int kind, Site site, int waiting, int missing) {
    auto& finding = report(kind, site, nullptr);
    if (finding.count > 1) return;
    finding.thread = waiting;
    finding.other_thread = missing;  // how many threads, or which lanes
}

struct Touch {  // an access to one array
    Array& array;
    Address address;
    size_t bytes;
    Access access;
    Site site;

    bool writes() const { return access != Access::READ; }
    ConvbackpropFinding& report(int kind, Site other_site = 0) const {
        auto& finding = checks::report(kind, site, &array, other_site);
        if (finding.count == 1) {
            finding.is_write = writes();
            finding.bytes = unsigned(bytes);
            finding.offset = (long long)(address - begin_of(array));
        }
        return finding;
    }
    void race(int kind, int other_thread, int64_t other_block, Site other_site, bool other_writes) const {
        auto& finding = report(kind, other_site);
        if (finding.count > 1) return;
        finding.other_thread = other_thread;
        finding.other_block = other_block;
        finding.other_is_write = other_writes;
    }
};

void look_for_race(const Touch& touch, Granule& granule, uint8_t bytes) {
    const bool atomic = touch.access == Access::ATOMIC, global = !is_shared(touch.array);
    if (granule.writer >= 0 && (granule.written_bytes & bytes) && !(atomic && granule.write_was_atomic)) {
        if (granule.writer_block != block)
            touch.race(RACE_BETWEEN_BLOCKS, granule.writer, granule.writer_block, granule.writer_site, true);
        else if (!order.is_before(granule.written_at, granule.writer, thread))
            touch.race(RACE, granule.writer, block, granule.writer_site, true);
    }
    if (touch.writes() && (granule.read_bytes & bytes) && !(atomic && granule.reads_were_atomic)) {
        const int64_t other =
            granule.reader_block >= 0 && granule.reader_block != block ? granule.reader_block : granule.other_reader_block;
        if (global && other >= 0 && other != block)
            touch.race(RACE_BETWEEN_BLOCKS, -1, other, granule.reads[0].site, false);
        else
            for (const Reads& reads : granule.reads) {
                const int reader = reads.warp < 0 ? -1 : order.unordered_reader(reads, thread);
                if (reader >= 0 && reads.earliest >= order.block_start()) {
                    touch.race(RACE, reader, block, reads.site, false);
                    break;
                }
            }
    }
    if (touch.writes()) {
        granule.written_at = order.now();
        granule.writer = int16_t(thread);
        granule.writer_block = block;
        granule.writer_site = touch.site;
        granule.write_was_atomic = atomic;
        granule.written_bytes = bytes;
    }
    if (touch.access != Access::WRITE) {
        granule.reads_were_atomic = atomic && (granule.read_bytes == 0 || granule.reads_were_atomic);
        granule.read_bytes |= bytes;
        order.note_read(granule, thread, touch.site);
        if (granule.reader_block < 0)
            granule.reader_block = block;
        else if (granule.reader_block != block)
            granule.other_reader_block = block;
    }
}

void check(const Touch& touch) {
    Array& array = touch.array;
    if (array.kind == ARRAY_SILENT) return;
    if (array.kind == ARRAY_INPUT && touch.writes()) touch.report(WRITE_TO_INPUT);
    if (is_shared(array) && array.begun != order.block_start()) {  // garbage again
        std::fill(array.granules.begin(), array.granules.end(), Granule{});
        std::fill(array.initialised.begin(), array.initialised.end(), 0);
        array.begun = order.block_start();
    }
    const Address first = touch.address - begin_of(array);
    auto* const initialised = array.initialised.data() + first;
    if (touch.access != Access::WRITE && memchr(initialised, 0, touch.bytes)) {
        touch.report(UNINITIALISED);
        memset(initialised, 1, touch.bytes);  // once for each
    }
    if (touch.writes()) memset(initialised, 1, touch.bytes);

    for (Address at = first; at < first + touch.bytes;) {
        const Address begin = at / array.granule * array.granule, end = std::min(begin + array.granule, first + touch.bytes);
        look_for_race(touch, array.granules[begin / array.granule],
                      uint8_t(((1u << (end - begin)) - 1) & ~((1u << (at - begin)) - 1)));
        at = end;
    }
}

// The runtime's memory (a thread's stack, the records of a warp operation, the built-in variables), or constants of the
// kernel's object.
bool is_own(Address address) {
    if (module.begin <= address && address < module.end) return true;
    for (const auto& [begin, end] : own_memory)
        if (begin <= address && address < end) return true;
    return false;
}

}  // namespace

// ------------------------------------------------------------------------------------------- from the hooks

void note_access(const void* pointer, size_t bytes, Access access, bool must_be_aligned, const void* site) {
    const Address address = Address(pointer);
    if (thread < 0 || bytes == 0 || is_own(address)) return;
    Array* array = array_with(address);
    if (!array) {
        Address distance;
        Array* nearest = nearest_array(address, distance);
        const Touch touch{nearest ? *nearest : arrays.front(), address, bytes, access, site_of(site)};
        auto& finding = touch.report(OUT_OF_BOUNDS);
        if (distance > GUARD) {
            finding.array = -1;
            stop_launch("it touches memory far from every array");
        }
        return;
    }
    const Touch touch{*array, address, bytes, access, site_of(site)};
    if (must_be_aligned && address % bytes != 0 && array->kind != ARRAY_SILENT) {
        touch.report(MISALIGNED);
        stop_launch("it reads or writes a misaligned address");  // the CPU may fault
    }
    if (address + bytes > end_of(*array)) {
        touch.report(OUT_OF_BOUNDS);
        return;
    }
    if (traffic::recording()) {
        if (array->kind == ARRAY_SILENT) return;
        const traffic::Place place{begin_of(*array), end_of(*array), int(array - arrays.data())};
        const int kind = access == Access::ATOMIC ? 2 : access == Access::WRITE;
        traffic::add_array(place, is_shared(*array), kind);
        traffic::note_access(place, is_shared(*array), kind, bytes, address, site);
    } else {
        check(touch);
    }
}

void note_uninitialised(const void* pointer, size_t bytes) {
    Array* const array = array_with(Address(pointer));
    if (array && !array->initialised.empty())
        memset(array->initialised.data() + (Address(pointer) - begin_of(*array)), 0, bytes);
}

int current_thread() { return thread; }

void note_array_index(const void* site) {
    if (thread >= 0) report(ARRAY_INDEX, site_of(site), nullptr);
}

// ----------------------------------------------------------------------------------------- from the runtime

static Site barrier_site;
static int last_at_barrier;

void add_own_memory(const void* begin, size_t bytes) { own_memory.push_back({Address(begin), Address(begin) + bytes}); }

void add_stacks(const void* begin, size_t bytes) {
    add_own_memory(begin, bytes);
    traffic::state.stacks = Address(begin);
    traffic::state.stacks_bytes = bytes;
}

void begin_launch(const ConvbackpropLaunch& launch) {
    dl_iterate_phdr(find_module, reinterpret_cast<void*>(launch.entry));
    traffic::begin_launch(module.base, module.tls_begin);
    own_memory.clear();
    add_own_memory(&convbackprop_threadIdx, sizeof convbackprop_threadIdx);
    add_own_memory(&convbackprop_blockIdx, sizeof convbackprop_blockIdx);
    add_own_memory(&convbackprop_blockDim, sizeof convbackprop_blockDim);
    add_own_memory(&convbackprop_gridDim, sizeof convbackprop_gridDim);
    dynamic_bytes = launch.shared_bytes;
    last_array = nullptr;
    // A launch begins when the one before has ended: its accesses come before these.
    for (Array& array : arrays)
        if (!is_shared(array)) std::fill(array.granules.begin(), array.granules.end(), Granule{});
}

void begin_block(uint64_t number, int threads) {
    block = int64_t(number);
    thread_count = threads;
    barrier_site = 0;
    forget_copies();
    order.begin_block((threads + LANES - 1) / LANES);
    // What a GPU's shared memory holds at first is garbage.
    for (const Array& array : arrays)
        if (is_shared(array)) memset(reinterpret_cast<void*>(begin_of(array)), 0xFF, end_of(array) - begin_of(array));
}

void end_block() {
    run_as(-1);
    traffic::end_part(block, thread_count, true);
}

void run_as(int number) {
    thread = number;
    traffic::run_as(number);
}

void arrive_at_barrier(int waiting, const void* site) {
    const Site here = site_of(site);
    if (barrier_site && barrier_site != here) report(DIVERGENT_BARRIER, here, nullptr, barrier_site);
    barrier_site = here;
    last_at_barrier = waiting;
}

void release_barrier(int arrived) {
    if (arrived < thread_count)
        report_waiting(BARRIER_WITHOUT_THREADS, barrier_site, last_at_barrier, thread_count - arrived);
    barrier_site = 0;
    order.barrier();
    traffic::end_part(block, thread_count, false);
}

void complete_warp_operation(int warp, unsigned mask, unsigned lanes, bool orders_memory, const void* site) {
    if (mask & ~lanes)
        report_waiting(MASK_OF_MISSING_LANES, site_of(site), warp * LANES + __builtin_ctz(lanes), int(mask & ~lanes));
    if (orders_memory) order.warp(warp, lanes);
}

bool only_addresses() { return traffic::recording(); }

void stop_at(const void* site) { report(STOPPED, site_of(site), nullptr); }

int thread_at(int position, int threads) {
    if (start_order == 0) return position;
    if (start_order == 1) return threads - 1 - position;
    static std::vector<int> shuffled;
    static std::pair<uint64_t, int64_t> made_for;
    if (position == 0 || made_for != std::make_pair(start_order, block) || int(shuffled.size()) != threads) {
        shuffled.resize(threads);
        for (int i = 0; i < threads; ++i) shuffled[i] = i;
        std::mt19937_64 random(start_order * 0x9E3779B97F4A7C15u + uint64_t(block));
        for (int i = threads - 1; i > 0; --i) std::swap(shuffled[i], shuffled[random() % (i + 1)]);
        made_for = {start_order, block};
    }
    return shuffled[position];
}

}  // namespace checks

// ------------------------------------------------------------------------------------------- the C interface

extern "C" {

int convbackprop_checks_add_array(int kind, const void* begin, size_t bytes, int granule) {
    using namespace checks;
    Array array{kind, Address(begin), Address(begin) + bytes, granule, {}, {}, 0};
    if (kind != ARRAY_SILENT && !traffic::recording()) {  // which looks up nothing in them
        array.granules.resize((bytes + granule - 1) / granule);
        array.initialised.assign(bytes, kind == ARRAY_INPUT);
    }
    arrays.push_back(std::move(array));
    last_array = nullptr;
    return int(arrays.size()) - 1;
}

void convbackprop_checks_keep_arrays(int count) {
    checks::arrays.erase(checks::arrays.begin() + count, checks::arrays.end());
    checks::last_array = nullptr;
}

void convbackprop_checks_set_order(unsigned long long wanted) { checks::start_order = wanted; }

size_t convbackprop_checks_notes_bytes(void) {
    size_t bytes = 0;
    for (const checks::Array& array : checks::arrays)
        bytes += array.granules.size() * sizeof(checks::Granule) + array.initialised.size();
    return bytes;
}

int convbackprop_checks_take_findings(ConvbackpropFinding* to, int most) {
    int count = 0;
    for (const auto& [key, finding] : checks::findings)
        if (count++ < most) *to++ = finding;
    checks::findings.clear();
    return count;
}
}
