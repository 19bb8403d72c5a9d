#include "traffic.h"
namespace checks::traffic {
bool recording() { return false; }
void note_access(int, uint32_t, int, bool, int, unsigned, uintptr_t) {}
void note_basic_block(int, uint32_t) {}
void end_part(int, bool) {}
void clear() {}
}
