// The copies of cuda_pipeline.h in a checked kernel: each is done when its thread has waited for its group, so that a
// wait that is missing shows. From when it is asked for until then its target belongs to it: it is written at both times.
#include <string.h>

#include <vector>

#include "checks.h"
#include "traffic.h"

namespace checks {
namespace {

constexpr int MAX_THREADS = 1024;

struct Copy {
    void* to;
    const void* from;
    size_t bytes, zeros;
    const void* site;
};

struct Groups {
    std::vector<std::vector<Copy>> closed;  // the oldest first
    std::vector<Copy> open;
} groups[MAX_THREADS];

void complete(const Copy& copy) {
    if (!traffic::recording()) note_access(copy.to, copy.bytes, Access::WRITE, true, copy.site);
    memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
    memset(static_cast<char*>(copy.to) + copy.bytes - copy.zeros, 0, copy.zeros);
}

}  // namespace

void forget_copies() {
    for (Groups& each : groups) each = {};
}

}  // namespace checks

#pragma GCC visibility push(default)
extern "C" {

void convbackprop_copy_later(void* to, const void* from, size_t bytes, size_t zeros) {
    using namespace checks;
    const void* const site = __builtin_return_address(0);
    // First what every lane does: of one that reads nothing the others are then in step, where traffic is counted.
    note_access(to, bytes, Access::WRITE, true, site);
    if (zeros < bytes) note_access(from, bytes - zeros, Access::READ, bytes == 4 || bytes == 8 || bytes == 16, site);
    note_uninitialised(to, bytes);
    groups[current_thread()].open.push_back({to, from, bytes, zeros, site});
}

void convbackprop_close_copies(void) {
    auto& mine = checks::groups[checks::current_thread()];
    mine.closed.push_back(std::move(mine.open));
    mine.open.clear();
}

void convbackprop_wait_for_copies(size_t left) {
    auto& closed = checks::groups[checks::current_thread()].closed;
    while (closed.size() > left) {
        for (const checks::Copy& copy : closed.front()) checks::complete(copy);
        closed.erase(closed.begin());
    }
}
}
#pragma GCC visibility pop
