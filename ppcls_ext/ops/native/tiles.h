// Tiles of matrix products: a panel of one or two vectors of columns lies packed in the cache, rows pass by it, and the
// sums stay in registers. Every sum runs over the inner dimension in its order, whatever the tile, so that its bits
// depend on nothing else.
#pragma once

#include "vectors.h"

constexpr int ROWS = LANES == 16 ? 12 : 6;  // of a tile: twice as many sums, within 32 or 16 registers
constexpr int64_t CHUNK = 256;              // rows that one thread takes past a panel, at the most
constexpr int64_t ITEMS = 12;               // of work, at least, so that threads share it evenly

// How many columns a panel of so many takes
inline int64_t panel_width(int64_t columns) { return columns <= LANES ? LANES : 2 * LANES; }

// The rows of one side: x_row values apart; each consists of runs of `inner` values that begin run_step values apart.
// panel_step: what lies between the rows of a panel that is not packed, 0 for one that is.
struct Rows {
    int64_t inner, x_row, runs = 1, run_step = 0, panel_step = 0;
};

// In how many chunks threads take `rows` past `panels`, and how many chunks there can be at the most
inline int64_t chunks_of(int64_t rows, int64_t panels, int64_t most) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK, wanted = (ITEMS + panels - 1) / panels;
    const int64_t result = chunks < wanted ? wanted : chunks;
    return result < most ? result : most;
}

// Lines of the cache that are asked for, one with each step of a tile: weights of the next panel, which lie far apart
struct Ahead {
    const float* line;
    int64_t step;
};

// What becomes of a tile's sums: to = sums + bias + added, whole vectors, rows `row` values apart. bias, one for all rows,
// and added, which lies as `to` does, may be null.
struct Ending {
    float* to;
    int64_t row;
    const float *bias = nullptr, *added = nullptr;
    Ending from_row(int64_t first) const { return {to + first * row, row, bias, added ? added + first * row : nullptr}; }
};

template <int VECTORS, int R>
void tile(const Rows& s, const float* x, const float* panel, Ahead ahead, const Ending& ending) {
    vec sums[R][VECTORS] = {};
    const int64_t step = s.panel_step ? s.panel_step : VECTORS * LANES;
    for (int64_t run = 0; run < s.runs; run++, x += s.run_step)
        for (int64_t k = 0; k < s.inner; k++, panel += step, ahead.line += ahead.step) {
            __builtin_prefetch(ahead.line, 0, 2);
            vec w[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) w[v] = load(panel + v * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const vec value = all(x[r * s.x_row + k]);
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++) sums[r][v] = fused(value, w[v], sums[r][v]);
            }
        }
    if (ending.bias)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) {
            const vec bias = load(ending.bias + v * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) sums[r][v] += bias;
        }
    if (ending.added)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) sums[r][v] += load(ending.added + r * ending.row + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) store(ending.to + r * ending.row + v * LANES, sums[r][v]);
}

template <int VECTORS, int R>
void tile_of(int64_t rows, const Rows& s, const float* x, const float* panel, Ahead ahead, const Ending& ending) {
    if constexpr (R > 1) {
        if (rows < R) return tile_of<VECTORS, R - 1>(rows, s, x, panel, ahead, ending);
    }
    tile<VECTORS, R>(s, x, panel, ahead, ending);
}

// Tiles of equal heights, as far as that goes: take(row, rows, ahead). `next` are weights whose rows of VECTORS vectors
// lie next_step apart and will be packed next, or null.
template <int VECTORS, class Take>
void split_rows(int64_t rows, const float* panel, const float* next, int64_t next_step, const Take& take) {
    const int64_t tiles = (rows + ROWS - 1) / ROWS;
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t row = rows * i / tiles, end = rows * (i + 1) / tiles;
        // one line of every row with each of the first tiles, that of a vector's end: the first came with this panel
        const bool fetch = next && i < VECTORS;
        take(row, end - row, Ahead{fetch ? next + (i + 1) * LANES - 1 : panel, fetch ? next_step : 0});
    }
}

template <int VECTORS>
void all_tiles(int64_t rows, const Rows& s, const float* x, const float* panel, const float* next, int64_t next_step,
               const Ending& ending) {
    split_rows<VECTORS>(rows, panel, next, next_step, [&](int64_t row, int64_t count, Ahead ahead) {
        tile_of<VECTORS, ROWS>(count, s, x + row * s.x_row, panel, ahead, ending.from_row(row));
    });
}

// The same for other endings: finish(sums, row, rows) with the sums of some rows (rows, VECTORS LANES)
template <int VECTORS, class Finish>
void all_tiles_to(int64_t rows, const Rows& s, const float* x, const float* panel, const float* next, int64_t next_step,
                  const Finish& finish) {
    split_rows<VECTORS>(rows, panel, next, next_step, [&](int64_t row, int64_t count, Ahead ahead) {
        alignas(64) float sums[ROWS * VECTORS * LANES];
        tile_of<VECTORS, ROWS>(count, s, x + row * s.x_row, panel, ahead, {sums, VECTORS * LANES});
        finish(sums, row, count);
    });
}
