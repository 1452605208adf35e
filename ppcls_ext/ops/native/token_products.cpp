// Gradients of linear layers' weights and biases: sums over many rows. And the product of tokens with an image's weights.
//
// Rows pass in chunks that stay in the cache; every sum is made by one thread, row by row.

#include <vector>

#include "steps.h"
#include "tiles.h"

namespace {

constexpr int64_t CACHED = 96 * 1024;  // floats of a chunk of rows, about

thread_local Scratch scratch;

int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// sums[i][j] = or, unless `fresh`, += x[row][i] * g[row][j] for R columns of x and `count` lanes of the last vector of g
template <int VECTORS, int R>
void add_products(bool fresh, int64_t rows, const float* x, int64_t x_row, const float* g, int64_t g_row, int count,
                  float* sums) {
    vec kept[R][VECTORS] = {};
    if (!fresh)
#pragma GCC unroll 16
        for (int i = 0; i < R; i++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) kept[i][v] = load(sums + (i * VECTORS + v) * LANES);
    for (int64_t row = 0; row < rows; row++, x += x_row, g += g_row) {
        vec own[VECTORS];
        if (VECTORS == 2) own[0] = load(g);
        own[VECTORS - 1] = load(g + (VECTORS - 1) * LANES, count);
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) {
            const vec value = all(x[i]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) kept[i][v] = fused(value, own[v], kept[i][v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; i++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) store(sums + (i * VECTORS + v) * LANES, kept[i][v]);
}

template <int VECTORS, int R>
void add_products_of(int64_t own, bool fresh, int64_t rows, const float* x, int64_t x_row, const float* g,
                     int64_t g_row, int count, float* sums) {
    if constexpr (R > 1) {
        if (own < R) return add_products_of<VECTORS, R - 1>(own, fresh, rows, x, x_row, g, g_row, count, sums);
    }
    add_products<VECTORS, R>(fresh, rows, x, x_row, g, g_row, count, sums);
}

// sums[j] = or += g[row][j]
void add_rows(bool fresh, int64_t rows, const float* g, int64_t g_row, int64_t columns, float* sums) {
    for (int64_t c = 0; c < columns; c += LANES) {
        const int count = lanes(columns - c);
        vec own = fresh ? vec{} : load(sums + c);
        for (int64_t row = 0; row < rows; row++) own += load(g + row * g_row + c, count);
        store(sums + c, own);
    }
}

}  // namespace

// Several products of one shape, sizes: count, rows, inner, columns, steps from row to row of x, w and y, and of w from
// inner to inner and column to column; addresses: x, w, y, bias or null and what is added or null of each
extern "C" void products(const int64_t* sizes, const float* const* addresses) {
    const int64_t count = sizes[0];
    const ProductShape shape{sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7]};
    std::vector<Product> all_products(count);
    for (int64_t i = 0; i < count; i++, addresses += 5)
        all_products[i] = {addresses[0], addresses[1], const_cast<float*>(addresses[2]), addresses[3], nullptr, nullptr,
                           addresses[4]};
    multiply(shape, all_products.data(), count);
}

// Several of one shape, sizes: count, rows, inner, columns, steps from row to row of x and of g and of the result.
// addresses: x (rows, inner), g (rows, columns), the gradient of the weight (inner, columns) and of the bias (columns,)
// of each; the last two may be null
extern "C" void products_gradients(const int64_t* sizes, const float* const* addresses) {
    const int64_t count = sizes[0], rows = sizes[1], inner = sizes[2], columns = sizes[3];
    const int64_t x_row = sizes[4], g_row = sizes[5], w_row = sizes[6];
    const bool narrow = columns <= LANES;
    const int64_t vectors = narrow ? 1 : 2, width = vectors * LANES, panels = parts_of(columns, width);
    const int64_t tiles = parts_of(inner, ROWS), per_product = panels * (tiles + 1);  // the last are those of the bias
    const int64_t size = ROWS * width, chunk = CACHED / (inner + columns) > 64 ? CACHED / (inner + columns) : 64;
    float* kept = scratch.of(count * per_product * size);
#pragma omp parallel if (count * rows * inner * columns >= 500000)  // threads take 10 us to wake
    {
        for (int64_t first = 0; first < rows; first += chunk) {
            const int64_t own_rows = rows - first < chunk ? rows - first : chunk;
            // each thread has the same items in every chunk: none needs to wait for another
#pragma omp for schedule(static) nowait
            for (int64_t item = 0; item < count * per_product; item++) {
                const float* const* own = addresses + item / per_product * 4;
                const int64_t part = item % per_product, panel = part / (tiles + 1), tile = part % (tiles + 1);
                const float* g = own[1] + first * g_row + panel * width;
                const int64_t left = columns - panel * width;
                float* sums = kept + item * size;
                if (tile == tiles) {
                    if (own[3]) add_rows(!first, own_rows, g, g_row, left < width ? left : width, sums);
                    continue;
                }
                if (!own[2]) continue;
                const int64_t begin = inner * tile / tiles, end = inner * (tile + 1) / tiles;
                const float* x = own[0] + first * x_row + begin;
                const auto add = narrow || left <= LANES ? add_products_of<1, ROWS> : add_products_of<2, ROWS>;
                add(end - begin, !first, own_rows, x, x_row, g, g_row, lanes(left > LANES ? left - LANES : left), sums);
            }
        }
    }
    for (int64_t item = 0; item < count * per_product; item++) {
        const float* const* own = addresses + item / per_product * 4;
        const int64_t part = item % per_product, panel = part / (tiles + 1), tile = part % (tiles + 1);
        const int64_t left = columns - panel * width, row_size = left <= LANES ? LANES : width;
        const float* sums = kept + item * size;
        const size_t bytes = (left < width ? left : width) * sizeof(float);
        if (tile == tiles) {
            if (own[3]) std::memcpy(const_cast<float*>(own[3]) + panel * width, sums, bytes);
            continue;
        }
        if (!own[2]) continue;
        const int64_t begin = inner * tile / tiles, end = inner * (tile + 1) / tiles;
        for (int64_t i = begin; i < end; i++)
            std::memcpy(const_cast<float*>(own[2]) + i * w_row + panel * width, sums + (i - begin) * row_size, bytes);
    }
}

// sizes: N, L, C. x y weight: (N, L, C), (N, L, C), (N, C) -> (N, L, C)
extern "C" void weighed_forward(const int64_t* sizes, const float* x, const float* y, const float* weight, float* to) {
    const int64_t length = sizes[1], channels = sizes[2], rows = sizes[0] * length;
#pragma omp parallel for schedule(static) if (rows * channels >= 16384)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t at = row * channels + c;
            const int count = lanes(channels - c);
            store(to + at, load(x + at, count) * load(y + at, count) * load(weight + row / length * channels + c, count),
                  count);
        }
}

extern "C" void weighed_backward(const int64_t* sizes, const float* x, const float* y, const float* weight,
                                 const float* g, float* x_gradient, float* y_gradient, float* weight_gradient) {
    const int64_t length = sizes[1], channels = sizes[2];
#pragma omp parallel for schedule(static) if (sizes[0] * length * channels >= 16384)
    for (int64_t image = 0; image < sizes[0]; image++) {
        float* sums = weight_gradient + image * channels;
        std::memset(sums, 0, channels * sizeof(float));
        for (int64_t row = image * length; row < (image + 1) * length; row++)
            for (int64_t c = 0; c < channels; c += LANES) {
                const int64_t at = row * channels + c;
                const int count = lanes(channels - c);
                const vec x_v = load(x + at, count), y_v = load(y + at, count), g_v = load(g + at, count);
                const vec with_weight = g_v * load(weight + image * channels + c, count);
                store(x_gradient + at, with_weight * y_v, count);
                store(y_gradient + at, with_weight * x_v, count);
                store(sums + c, fused(g_v * x_v, y_v, load(sums + c, count)), count);
            }
    }
}
