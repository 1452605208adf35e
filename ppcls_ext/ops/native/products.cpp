// Matrix products of tokens, several of one shape at once, each with what follows it: bias, and a product with a map.
//
// A panel of two vectors of columns is packed and kept in the cache; tiles of rows pass by it in registers. Every sum
// runs over the inner dimension in its order, whatever the tile, so that the bits depend on nothing else.

#include "vectors.h"

namespace {

constexpr int ROWS = LANES == 16 ? 12 : 6;  // of a tile: twice as many sums, within 32 or 16 registers
constexpr int64_t CHUNK = 256;              // rows that one thread takes past a panel, at the most
constexpr int64_t ITEMS = 12;               // of work, at least, so that threads share it evenly

struct Shape {
    int64_t count, rows, inner, columns, x_row, w_inner, w_column, y_row, image_rows;
};

// What is done with a sum before it is stored; pointers are null where there is nothing to do.
struct Ending {
    const float *bias, *factor, *scale;
};

thread_local Scratch scratch;

// (inner, columns) -> (inner, WIDTH), 0 beyond the last column
template <int WIDTH>
void pack(const Shape& s, const float* w, int64_t column, float* to) {
    const int64_t left = s.columns - column;
    for (int64_t k = 0; k < s.inner; k++, to += WIDTH) {
        const float* from = w + k * s.w_inner + column * s.w_column;
        if (left >= WIDTH && s.w_column == 1)
            std::memcpy(to, from, WIDTH * sizeof(float));
        else
            for (int i = 0; i < WIDTH; i++) to[i] = i < left ? from[i * s.w_column] : 0.0f;
    }
}

// Sums of R rows -> (R, VECTORS LANES); the rows' values come from memory, the sums stay in registers.
template <int VECTORS, int R>
void tile(const Shape& s, const float* x, const float* panel, float* to) {
    vec sums[R][VECTORS] = {};
    for (int64_t k = 0; k < s.inner; k++, panel += VECTORS * LANES) {
        vec w[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) w[v] = load(panel + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const vec value = all(x[r * s.x_row + k]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) sums[r][v] += value * w[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) store(to + (r * VECTORS + v) * LANES, sums[r][v]);
}

void finish(const Shape& s, const float* sums, int64_t row, int64_t rows, int64_t column, int vectors,
            const Ending& ending, float* y) {
    if (!ending.factor && column + vectors * LANES <= s.columns) {
        for (int v = 0; v < vectors; v++) {
            const vec bias = ending.bias ? load(ending.bias + column + v * LANES) : vec{};
            for (int64_t r = 0; r < rows; r++)
                store(y + (row + r) * s.y_row + column + v * LANES, load(sums + (r * vectors + v) * LANES) + bias);
        }
        return;
    }
    for (int64_t r = row; r < row + rows; r++)
        for (int v = 0; v < vectors; v++, sums += LANES) {
            const int64_t first = column + v * LANES, at = r * s.y_row + first;
            if (first >= s.columns) continue;
            const int count = lanes(s.columns - first);
            vec result = load(sums);
            if (ending.bias) result += load(ending.bias + first, count);
            if (ending.factor)
                result *= load(ending.factor + at, count) *
                          load(ending.scale + r / s.image_rows * s.y_row + first, count);
            store(y + at, result, count);
        }
}

template <int VECTORS, int R>
void tile_of(int64_t rows, const Shape& s, const float* x, const float* panel, float* to) {
    if constexpr (R > 1) {
        if (rows < R) return tile_of<VECTORS, R - 1>(rows, s, x, panel, to);
    }
    tile<VECTORS, R>(s, x, panel, to);
}

template <int VECTORS>
void chunk(const Shape& s, const float* x, const float* w, int64_t first, int64_t end, int64_t column,
           const Ending& ending, float* y) {
    float* panel = scratch.of(s.inner * VECTORS * LANES);
    pack<VECTORS * LANES>(s, w, column, panel);
    const int64_t tiles = (end - first + ROWS - 1) / ROWS;
    for (int64_t i = 0; i < tiles; i++) {  // of equal heights, as far as that goes
        const int64_t row = first + (end - first) * i / tiles, next = first + (end - first) * (i + 1) / tiles;
        alignas(64) float sums[ROWS * VECTORS * LANES];
        tile_of<VECTORS, ROWS>(next - row, s, x + row * s.x_row, panel, sums);
        finish(s, sums, row, next - row, column, VECTORS, ending, y);
    }
}

}  // namespace

// sizes: products, rows, inner, columns, steps of x's rows, of w's inner dimension and columns, of y's rows, and rows
// of an image. x[i] (rows, inner) by w[i] (inner, columns) -> y[i] = (x w + bias) factor scale, where factor lies as y
// does and scale has one row per image; bias[i] and factor[i] may be null.
extern "C" void products_forward(const int64_t* sizes, const float* const* x, const float* const* w,
                                 const float* const* bias, const float* const* factor, const float* const* scale,
                                 float* const* y) {
    const Shape s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8]};
    const bool narrow = s.columns <= LANES;
    const int64_t width = narrow ? LANES : 2 * LANES, panels = (s.columns + width - 1) / width;
    int64_t chunks = (s.rows + CHUNK - 1) / CHUNK;
    const int64_t wanted = (ITEMS + s.count * panels - 1) / (s.count * panels), most = (s.rows + ROWS - 1) / ROWS;
    if (chunks < wanted) chunks = wanted < most ? wanted : most;
    // threads take 10 us to wake
#pragma omp parallel for schedule(static) if (s.count * s.rows * s.inner * s.columns >= 500000)
    for (int64_t item = 0; item < s.count * chunks * panels; item++) {
        const int64_t own = item / (chunks * panels), part = item / panels % chunks, column = item % panels * width;
        const int64_t first = s.rows * part / chunks, end = s.rows * (part + 1) / chunks;
        const Ending ending{bias[own], factor[own], scale[own]};
        if (narrow)
            chunk<1>(s, x[own], w[own], first, end, column, ending, y[own]);
        else
            chunk<2>(s, x[own], w[own], first, end, column, ending, y[own]);
    }
}
