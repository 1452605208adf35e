// Matrix products of tokens, several of one shape at once, each with what follows it: bias, products with maps, a sum.

#include <omp.h>

#include "steps.h"
#include "tiles.h"

namespace {

constexpr int64_t AHEAD = 12;  // rows of weights that are fetched before they are packed: they lie far apart
constexpr int64_t CACHED = 280 * 1024;  // values of x that stay in the cache of one thread: 1.1 MB

thread_local Scratch scratch;

// (inner, columns) -> (inner, WIDTH), 0 beyond the last column
template <int WIDTH>
void pack(const ProductShape& s, const float* w, int64_t column, float* to) {
    const int64_t left = s.columns - column;
    if (s.w_inner == 1 && s.w_column != 1) {  // transposed
        for (int64_t k = 0; k < s.inner; k += LANES)
            for (int v = 0; v < WIDTH; v += LANES) {
                const int own = lanes(left - v), count = lanes(s.inner - k);
                vec rows[LANES] = {};
                for (int i = 0; i < own; i++) rows[i] = load(w + (column + v + i) * s.w_column + k, count);
                transpose(rows);
                for (int i = 0; i < count; i++) store(to + (k + i) * WIDTH + v, rows[i]);
            }
        return;
    }
    for (int64_t k = 0; k < s.inner; k++, to += WIDTH) {
        const float* from = w + k * s.w_inner + column * s.w_column;
        if (left >= WIDTH && s.w_column == 1) {
            for (int i = 15; i < WIDTH; i += 16) __builtin_prefetch(from + AHEAD * s.w_inner + i);
            std::memcpy(to, from, WIDTH * sizeof(float));
        } else {
            for (int i = 0; i < WIDTH; i++) to[i] = i < left ? from[i * s.w_column] : 0.0f;
        }
    }
}

template <int VECTORS>
void finish(const ProductShape& s, const Product& p, const float* sums, int64_t row, int64_t rows, int64_t column) {
    for (int v = 0; v < VECTORS && column + v * LANES < s.columns; v++) {
        const int64_t first = column + v * LANES;
        const int count = lanes(s.columns - first);
        const vec bias = p.bias ? load(p.bias + first, count) : vec{};
        for (int64_t r = 0; r < rows; r++) {
            const int64_t at = (row + r) * s.y_row + first;
            vec result = load(sums + (r * VECTORS + v) * LANES) + bias;
            if (p.factor)
                result *= load(p.factor + at, count) *
                          load(p.image_factor + (row + r) / s.image_rows * s.y_row + first, count);
            if (p.added) result += load(p.added + at, count);
            store(p.y + at, result, count);
        }
    }
}

// The rows from `first` to `end` past a panel; `next`: weights that will be packed next, or null
template <int VECTORS>
void pass(const ProductShape& s, const Product& p, int64_t first, int64_t end, int64_t column, const float* panel,
          int64_t panel_step, const float* next) {
    const Rows sides{s.inner, s.x_row, 1, 0, panel_step};
    const float* x = p.x + first * s.x_row;
    if (!p.factor && column + VECTORS * LANES <= s.columns) {
        const int64_t at = first * s.y_row + column;
        const Ending ending{p.y + at, s.y_row, p.bias ? p.bias + column : nullptr, p.added ? p.added + at : nullptr};
        all_tiles<VECTORS>(end - first, sides, x, panel, next, s.w_inner, ending);
    } else {
        all_tiles_to<VECTORS>(end - first, sides, x, panel, next, s.w_inner,
                              [&](const float* sums, int64_t row, int64_t rows) {
                                  finish<VECTORS>(s, p, sums, first + row, rows, column);
                              });
    }
}

// The same with the panel as it lies where few rows pass by it, else packed, unless it is so from the call before;
// whether it is packed now
template <int VECTORS>
bool chunk(const ProductShape& s, const Product& p, int64_t first, int64_t end, int64_t column, bool packed = false) {
    const int64_t next = column + VECTORS * LANES;
    if (end - first <= ROWS && s.w_column == 1 && next <= s.columns) {
        pass<VECTORS>(s, p, first, end, column, p.w + column, s.w_inner, nullptr);
        return packed;
    }
    float* panel = scratch.of(s.inner * VECTORS * LANES);
    if (!packed) pack<VECTORS * LANES>(s, p.w, column, panel);
    const bool fetch = s.w_column == 1 && next + VECTORS * LANES <= s.columns;
    pass<VECTORS>(s, p, first, end, column, panel, 0, fetch ? p.w + next : nullptr);
    return true;
}

// All rows past a panel of packed weights
void pass_packed(const ProductShape& s, const Product& p, int64_t column) {
    const float* panel = p.w + column * s.inner;
    if (panel_columns(s) == LANES)
        pass<1>(s, p, 0, s.rows, column, panel, 0, nullptr);
    else
        pass<2>(s, p, 0, s.rows, column, panel, 0, nullptr);
}

int64_t panels_of(const ProductShape& s) { return (s.columns + panel_columns(s) - 1) / panel_columns(s); }

}  // namespace

int64_t panel_columns(const ProductShape& s) { return panel_width(s.columns); }

void multiply_panel(const ProductShape& s, const Product& product, int64_t column) {
    Product own = product;
    own.y -= column;  // where the first column would lie
    if (panel_columns(s) == LANES)
        chunk<1>(s, own, 0, s.rows, column);
    else
        chunk<2>(s, own, 0, s.rows, column);
}

int64_t packed_size(const ProductShape& s) { return panels_of(s) * panel_columns(s) * s.inner; }

void pack_weights(const ProductShape& s, const float* w, float* to) {
    const int64_t width = panel_columns(s);
#pragma omp parallel for schedule(static) if (s.inner * s.columns >= 65536)
    for (int64_t panel = 0; panel < panels_of(s); panel++)
        if (width == LANES)
            pack<LANES>(s, w, 0, to);
        else
            pack<2 * LANES>(s, w, panel * width, to + panel * width * s.inner);
}

void multiply_packed(const ProductShape& s, const Product& p) {
    for (int64_t column = 0; column < s.columns; column += panel_columns(s)) pass_packed(s, p, column);
}

void multiply_packed_panel(const ProductShape& s, const Product& product, int64_t column) {
    Product own = product;
    own.y -= column;  // where the first column would lie
    pass_packed(s, own, column);
}

void multiply(const ProductShape& s, const Product* products, int64_t count) {
    const int64_t width = panel_columns(s), panels = panels_of(s);
    // one thread by itself packs a panel once for as many rows as its cache holds
    const int64_t chunks = omp_in_parallel() ? (s.rows * s.inner + CACHED - 1) / CACHED
                                             : chunks_of(s.rows, count * panels, (s.rows + ROWS - 1) / ROWS);
    // many rows: all panels pass by some, which stay in the cache; few: all of these pass by a panel
    const bool by_rows = omp_in_parallel() ? chunks > 1 : s.rows > CHUNK;
    const int64_t items = count * chunks * panels;
    // threads take 10 us to wake
#pragma omp parallel if (count * s.rows * s.inner * s.columns >= 500000)
    {
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        int64_t packed = -1;
        for (int64_t item = items * thread / threads; item < items * (thread + 1) / threads; item++) {
            const int64_t own = item / (chunks * panels), left = item % (chunks * panels);
            const int64_t part = by_rows ? left / panels : left % chunks, panel = by_rows ? left % panels : left / chunks;
            const int64_t first = s.rows * part / chunks, end = s.rows * (part + 1) / chunks;
            const int64_t wanted = own * panels + panel;
            const bool now = width == LANES
                                 ? chunk<1>(s, products[own], first, end, panel * width, packed == wanted)
                                 : chunk<2>(s, products[own], first, end, panel * width, packed == wanted);
            packed = now ? wanted : -1;
        }
    }
}

// sizes: rows, inner, columns. x (rows, inner), w (inner, columns), bias (columns,) or null -> y (rows, columns)
extern "C" void linear_forward(const int64_t* sizes, const float* x, const float* w, const float* bias, float* y) {
    const int64_t rows = sizes[0], inner = sizes[1], columns = sizes[2];
    const Product product{x, w, y, bias};
    multiply({rows, inner, columns, inner, columns, 1, columns}, &product, 1);
}
