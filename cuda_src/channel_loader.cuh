// Images whose channels lie side by side in memory, too, on their way to shared memory: what halo_loader.cuh and
// tap_halo.cuh turn comes here as it lies, a chunk of 16 bytes at a time.
#pragma once
#include "halo_loader.cuh"

// Of images of rows x cols pixels the chunk of a pixel's channels, or zeros where there is no pixel. CHANNELS_AT_ONCE:
// by how many channels they are read, as their addresses allow.
struct ChannelReader {
    using Word = typename Elements<CHANNELS_AT_ONCE>::Word;
    static constexpr int WORDS_OF_CHUNK = sizeof(Chunk) / sizeof(Word);
    // cp.async brings 4 bytes or more.
    static constexpr bool IS_COPIED = sizeof(Word) >= 4;

    const Address images;  // at the first channel of the group
    const int N, rows, cols, channels;
    Address corner = 0, here = 0;
    int row = 0, col = 0;  // of the corner
    bool inside = false;

    __device__ __forceinline__ ChannelReader(const Scalar* images, int N, int channels, int first_channel, int rows,
                                             int cols)
        : images(Address(images + first_channel)), N(N), rows(rows), cols(cols), channels(channels) {}
    __device__ __forceinline__ void set_corner(int n, int row, int col) {
        this->row = n < N ? row : NOWHERE, this->col = col;
        corner = images + (Index(n) * (rows * cols * channels) + (row * cols + col) * channels) * Index(sizeof(Scalar));
    }
    __device__ __forceinline__ void go_to(int channel, int down, int across) {
        inside = unsigned(row + down) < unsigned(rows) && unsigned(col + across) < unsigned(cols);
        here = corner + ((down * cols + across) * channels + channel) * Index(sizeof(Scalar));
    }
    // beside: how many bytes further on, in an array of the same extents.
    __device__ __forceinline__ Chunk read(bool exists, Address beside = 0) const {
        const Word* const from = reinterpret_cast<const Word*>(here + beside);
        union {
            Word words[WORDS_OF_CHUNK];
            Chunk chunk;
        } found = {};
#pragma unroll
        for (int i = 0; i < WORDS_OF_CHUNK; ++i) found.words[i] = exists && inside ? __ldg(from + i) : Word{};
        return found.chunk;
    }
    // The same, past the registers.
    __device__ __forceinline__ void copy(Chunk& to) const {
#pragma unroll
        for (int i = 0; i < WORDS_OF_CHUNK; ++i)
            copy_or_zero<sizeof(Word)>(reinterpret_cast<Word*>(&to) + i, here + i * sizeof(Word), inside);
    }
};

__device__ __forceinline__ Scalar element_of(const Chunk& chunk, int i) {
    return reinterpret_cast<const Scalar*>(&chunk)[i];
}

// x, as a Reader.
struct InputChannels : ChannelReader {
    using Read = Chunk;

    __device__ __forceinline__ InputChannels(const Scalar* x, const Conv2dShape& shape, int group)
        : ChannelReader(x, shape.N, shape.C, group * shape.group_channels(), shape.H, shape.W) {}
    static __device__ __forceinline__ Chunk formed(const Read& read) { return read; }
};

// g, whose phi' is 0 or 1.
struct GradChannels : ChannelReader {
    static constexpr bool IS_COPIED = ChannelReader::IS_COPIED && ACTIVATION == IDENTITY;
    struct Read {
        Chunk dy, y;
    };
    const Address y_beside;  // from an element of dy to that of y

    __device__ __forceinline__ GradChannels(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, int group)
        : ChannelReader(dy, shape.N, shape.K, group * shape.group_filters(), shape.P, shape.Q),
          y_beside(Address(saved) - Address(dy)) {}
    __device__ __forceinline__ Read read(bool exists) const {
        Read found;
        found.dy = ChannelReader::read(exists);
        if constexpr (ACTIVATION != IDENTITY) found.y = ChannelReader::read(exists, y_beside);
        return found;
    }
    static __device__ __forceinline__ Chunk formed(const Read& read) {
        if constexpr (ACTIVATION == IDENTITY) {
            return read.dy;
        } else {
            Chunk g;
#pragma unroll
            for (int i = 0; i < CHUNK_STEPS; ++i) {
                const bool is_open = times_derivative(1, to_acc(element_of(read.y, i))) != 0;
                reinterpret_cast<Scalar*>(&g)[i] = is_open ? element_of(read.dy, i) : Scalar(0.0f);
            }
            return g;
        }
    }
};

// HaloLoader's: a unit is a chunk of a pixel, of which a pixel's four are consecutive in threadIdx.x.
template <class Reader, class Halo>
struct ChannelLoader {
    static constexpr bool IS_COPIED = Reader::IS_COPIED;
    static constexpr int AT_ONCE = THREADS / CHUNKS;

    Reader reader;
    int n, first_row, first_col;  // of the halo, in the images
    const int chunk = threadIdx.x % CHUNKS;
    int row = 0, col = 0;  // of the next unit, or of the one that is under way: a row of all images' halos
    typename Reader::Read own;

    __device__ __forceinline__ ChannelLoader(const Reader& reader, int n, int first_row, int first_col)
        : reader(reader) {
        move_to(n, first_row, first_col);
    }
    __device__ __forceinline__ void move_to(int n, int first_row, int first_col) {
        this->n = n, this->first_row = first_row, this->first_col = first_col;
        reader.set_corner(n, first_row, first_col);
    }
    __device__ __forceinline__ void begin() {
        row = threadIdx.x / CHUNKS / HALO_Q, col = threadIdx.x / CHUNKS % HALO_Q;
    }
    __device__ __forceinline__ bool has_units() const { return row < TILE_IMAGES * HALO_P; }
    __device__ __forceinline__ Chunk& place(Halo& halo) const {
        return halo.chunks[0][(row * HALO_Q + col) * Halo::PITCH + chunk];
    }
    // What is not formed goes to its place at once.
    __device__ __forceinline__ void ask(Halo& halo, int first_plane, bool exists = true) {
        const int image = TILE_IMAGES > 1 ? unsigned(row) / HALO_P : 0;
        if constexpr (TILE_IMAGES > 1) reader.set_corner(n + image, first_row, first_col);
        reader.go_to(first_plane + chunk * CHUNK_STEPS, row - image * HALO_P, col);
        if constexpr (!IS_COPIED)
            own = reader.read(exists);
        else if (exists)
            reader.copy(place(halo));
    }
    template <bool IS_FREE = false>
    __device__ __forceinline__ void put(Halo& halo, bool exists = true) {
        if constexpr (!IS_COPIED) {
            const Chunk formed = Reader::formed(own);
            if constexpr (IS_FREE)
                store_if(exists, exists ? &place(halo) : &halo.chunks[0][chunk], formed.words);
            else
                place(halo) = formed;
        }
        col += AT_ONCE % HALO_Q;
        row += AT_ONCE / HALO_Q + Pixel::passes_end(col, HALO_Q);
    }
    __device__ __forceinline__ void bring(Halo& halo, int first_plane) {
#pragma unroll 1
        while (has_units()) {
            ask(halo, first_plane);
            put(halo);
        }
    }
};

// What brings a halo, of x or of g, in either layout.
using ImageReader = std::conditional_t<CHANNELS_LAST, InputChannels, InputReader>;
using GradImageReader = std::conditional_t<CHANNELS_LAST, GradChannels, GradReader>;
template <class Reader, int VECTOR_PIXELS, class Halo>
using LayoutLoader = std::conditional_t<CHANNELS_LAST, ChannelLoader<Reader, Halo>, HaloLoader<Reader, VECTOR_PIXELS, Halo>>;
static_assert(!CHANNELS_LAST || (HALO && !IS_TF32), "16-bit channels come in chunks, to halos");
