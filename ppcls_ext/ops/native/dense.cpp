// Convolution of maps that mixes all channels: any kernel, stride and padding, without columns.
//
// Of the input, the rows that a few rows of the result need are copied with their padding, columns of one remainder by
// the stride side by side: every tap then is a run of vectors. Tiles of channels by columns stay in registers. Every
// sum is made by one thread in one order.

#include "vectors.h"

namespace {

constexpr int CHANNELS = LANES == 16 ? 8 : 4;  // of a tile
constexpr int VECTORS = LANES == 16 ? 3 : 2;
constexpr int64_t STRIP = 4;  // rows of the result that share a copy of the input

struct Shape {
    int64_t n, channels, height, width, out_channels, kernel_height, kernel_width, down, across, top, left, out_height,
        out_width;
    int64_t taps() const { return channels * kernel_height * kernel_width; }
    // of a copied row: columns of one remainder, room for the last vectors of the widest tile, and the whole row
    int64_t phase() const {
        return (out_width + LANES - 1) / LANES * LANES + (kernel_width + across - 1) / across;
    }
    int64_t line() const { return phase() * across; }
    int64_t lines() const { return (STRIP - 1) * down + kernel_height; }
};

thread_local Scratch scratch, kept_weights;

// (out, in, k, l) -> (out / CHANNELS, in, k, l, CHANNELS), 0 beyond the last channel
void by_tile(const Shape& s, const float* weight, float* to) {
    for (int64_t o = 0; o < s.out_channels; o += CHANNELS)
        for (int64_t t = 0; t < s.taps(); t++)
            for (int64_t i = 0; i < CHANNELS; i++)
                *to++ = o + i < s.out_channels ? weight[(o + i) * s.taps() + t] : 0.0f;
}

// The rows from `y` of the result on -> (channels, lines, across, phase)
void copy(const Shape& s, const float* image, int64_t y, float* to) {
    for (int64_t c = 0; c < s.channels; c++)
        for (int64_t i = 0; i < s.lines(); i++, to += s.line()) {
            const int64_t row = y * s.down + i - s.top;
            std::memset(to, 0, s.line() * sizeof(float));
            if (row < 0 || row >= s.height) continue;
            const float* from = image + (c * s.height + row) * s.width;
            for (int64_t phase = 0; phase < s.across; phase++) {
                float* own = to + phase * s.phase();
                // column p of this phase is column p across + phase - left of the map
                const int64_t shift = phase - s.left;
                int64_t p = shift < 0 ? (-shift + s.across - 1) / s.across : 0;
                for (; p < s.phase() && p * s.across + shift < s.width; p++) own[p] = from[p * s.across + shift];
            }
        }
}

template <int WIDTH>
void tile(const Shape& s, const float* rows, const float* weights, float* to) {
    vec sums[CHANNELS][WIDTH] = {};
    for (int64_t c = 0; c < s.channels; c++)
        for (int64_t i = 0; i < s.kernel_height; i++)
            for (int64_t j = 0; j < s.kernel_width; j++, weights += CHANNELS) {
                const float* from = rows + (c * s.lines() + i) * s.line() + j % s.across * s.phase() + j / s.across;
                vec x[WIDTH];
#pragma GCC unroll 4
                for (int v = 0; v < WIDTH; v++) x[v] = load(from + v * LANES);
#pragma GCC unroll 16
                for (int o = 0; o < CHANNELS; o++) {
                    const vec w = all(weights[o]);
#pragma GCC unroll 4
                    for (int v = 0; v < WIDTH; v++) sums[o][v] += w * x[v];
                }
            }
#pragma GCC unroll 16
    for (int o = 0; o < CHANNELS; o++)
#pragma GCC unroll 4
        for (int v = 0; v < WIDTH; v++) store(to + (o * VECTORS + v) * LANES, sums[o][v]);
}

template <int WIDTH>
void tile_of(int64_t vectors, const Shape& s, const float* rows, const float* weights, float* to) {
    if constexpr (WIDTH > 1) {
        if (vectors < WIDTH) return tile_of<WIDTH - 1>(vectors, s, rows, weights, to);
    }
    tile<WIDTH>(s, rows, weights, to);
}

}  // namespace

// sizes: N, channels in, height, width, channels out, the kernel's height and width, steps down and across, padding at
// the top and left, the result's height and width. x (N, C, H, W), weight (O, C, k, l), bias (O,) or null -> y
extern "C" void dense_forward(const int64_t* sizes, const float* x, const float* weight, const float* bias, float* y) {
    const Shape s{sizes[0], sizes[1], sizes[2], sizes[3],  sizes[4],  sizes[5], sizes[6],
                  sizes[7], sizes[8], sizes[9], sizes[10], sizes[11], sizes[12]};
    const int64_t tiles = (s.out_channels + CHANNELS - 1) / CHANNELS, strips = (s.out_height + STRIP - 1) / STRIP;
    float* weights = kept_weights.of(tiles * s.taps() * CHANNELS);
    by_tile(s, weight, weights);
#pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < s.n * strips; item++) {
        const int64_t image = item / strips, first = item % strips * STRIP;
        const int64_t last = first + STRIP < s.out_height ? first + STRIP : s.out_height;
        float* copied = scratch.of(s.channels * s.lines() * s.line());
        copy(s, x + image * s.channels * s.height * s.width, first, copied);
        alignas(64) float sums[CHANNELS * VECTORS * LANES];
        for (int64_t t = 0; t < tiles; t++)
            for (int64_t row = first; row < last; row++)
                for (int64_t column = 0; column < s.out_width; column += VECTORS * LANES) {
                    const int64_t vectors = (s.out_width - column + LANES - 1) / LANES;
                    tile_of<VECTORS>(vectors, s, copied + (row - first) * s.down * s.line() + column,
                                     weights + t * s.taps() * CHANNELS, sums);
                    for (int64_t o = t * CHANNELS; o < (t + 1) * CHANNELS && o < s.out_channels; o++) {
                        float* to = y + ((image * s.out_channels + o) * s.out_height + row) * s.out_width + column;
                        const vec added = all(bias ? bias[o] : 0.0f);
                        for (int64_t v = 0; v < VECTORS && v < vectors; v++)
                            store(to + v * LANES, load(sums + (o % CHANNELS * VECTORS + v) * LANES) + added,
                                  lanes(s.out_width - column - v * LANES));
                    }
                }
    }
}
