// Planes of x under a tile of kernel_grad's tensor_core, with their halo, as they lie in memory: of 32-bit numbers. A warp
// reads these one by one, at any address, so that nothing is turned.
#pragma once
#include "halo_loader.cuh"
#include "tap_steps.cuh"

// A halo's planes, as they lie in memory: of 32-bit numbers, which are read one by one. 8 channels' 4 pixels lie in all
// banks.
struct HaloPlanes {
    static constexpr int PIXELS = HALO_PIXELS, PITCH = PIXELS + (12 - PIXELS % 8) % 8;
    static constexpr int PIXEL_BYTES = sizeof(unsigned), CHANNEL_BYTES = PITCH * PIXEL_BYTES;
    static_assert(PITCH % 8 == 4, "a plane begins four banks beside the one before, or 12, 20 or 28");
    alignas(16) unsigned words[RIGHT_PARTS][TILE_C * PITCH];
};

// Brings planes of a halo, VECTOR_PIXELS neighbouring pixels at a time, some of a thread's under way at once.
// Neighbours are consecutive in threadIdx.x.
template <class Reader, int VECTOR_PIXELS>
struct PlaneLoader {
    static constexpr bool IS_COPIED = false;
    // The gap behind a plane counts, too: so threads write side by side, to all banks.
    static constexpr int ACROSS = HALO_Q / VECTOR_PIXELS, PLANE_UNITS = HaloPlanes::PITCH / VECTOR_PIXELS;
    static constexpr int OWN = (TILE_C * PLANE_UNITS + THREADS - 1) / THREADS;
    static constexpr int EACH = (OWN + STEP_GROUPS - 1) / STEP_GROUPS, MOST = 8 / RIGHT_PARTS / VECTOR_PIXELS;
    static constexpr int AT_ONCE = EACH < MOST ? EACH : MOST > 1 ? MOST : 1;  // registers hold few

    // Which vector of which plane.
    struct Place {
        int plane, unit;

        __device__ __forceinline__ bool exists() const {
            return plane < TILE_C && unit < HaloPlanes::PIXELS / VECTOR_PIXELS;
        }
        __device__ __forceinline__ void advance() {
            plane += THREADS / PLANE_UNITS;
            unit += THREADS % PLANE_UNITS;
            plane += Pixel::passes_end(unit, PLANE_UNITS);
        }
    };
    Reader reader;
    int n, first_row, first_col;  // of the halo, in the images
    Place next;                   // or the first of those that are under way
    decltype(reader.template read<VECTOR_PIXELS>()) own[AT_ONCE];

    __device__ __forceinline__ PlaneLoader(const Reader& reader, int, int, int) : reader(reader) {}
    __device__ __forceinline__ void move_to(int n, int first_row, int first_col) {
        this->n = n, this->first_row = first_row, this->first_col = first_col;
        reader.set_corner(n, first_row, first_col);
    }
    __device__ __forceinline__ void begin() {
        next = {int(threadIdx.x / PLANE_UNITS), int(threadIdx.x % PLANE_UNITS)};
    }
    __device__ __forceinline__ bool has_units() const { return next.plane < TILE_C; }
    __device__ __forceinline__ void ask(HaloPlanes&, int first_plane, bool exists = true) {
        Place place = next;
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i, place.advance()) {
            const unsigned unit = place.unit;
            if constexpr (TILE_IMAGES > 1) reader.set_corner(n + unit / ACROSS / HALO_P, first_row, first_col);
            reader.go_to(reader.offset(first_plane + place.plane, unit / ACROSS % HALO_P, unit % ACROSS * VECTOR_PIXELS));
            own[i] = reader.template read<VECTOR_PIXELS>(exists && place.exists());
        }
    }
    __device__ __forceinline__ void put(HaloPlanes& halo, bool exists = true) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i, next.advance()) {
            unsigned words[RIGHT_PARTS][VECTOR_PIXELS];
#pragma unroll
            for (int e = 0; e < VECTOR_PIXELS; ++e) {
                const Tf32Parts<RIGHT_PARTS> both(own[i].value(e));
#pragma unroll
                for (int part = 0; part < RIGHT_PARTS; ++part) words[part][e] = both.words[part];
            }
            const bool is_unit = exists && next.exists();
            const int at = is_unit ? next.plane * HaloPlanes::PITCH + next.unit * VECTOR_PIXELS : 0;
#pragma unroll
            for (int part = 0; part < RIGHT_PARTS; ++part) store_if(is_unit, &halo.words[part][at], words[part]);
        }
    }
    // All that are left.
    __device__ __forceinline__ void bring(HaloPlanes& halo, int first_plane) {
#pragma unroll 1
        while (has_units()) {
            ask(halo, first_plane);
            put(halo);
        }
    }
};
