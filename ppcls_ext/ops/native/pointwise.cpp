// 1x1 convolution: one matrix product over the pixels of all images, and its gradients. Maps are read where they lie: a
// panel of columns runs on from image to image, however small they are.

#include "tiles.h"

namespace {

constexpr int64_t WIDTH = 2 * LANES;  // of a panel
constexpr int64_t COLUMNS = 8 * WIDTH;  // that are packed together
constexpr int64_t BLOCK = 256;   // pixels that a panel of the weights' gradient holds, more or less
constexpr int64_t GROUP = 128;   // channels whose panels lie in the cache together
constexpr int64_t WORTH = 500000;  // products that are worth waking threads for, which takes 10 us

thread_local Scratch scratch;
thread_local Scratch kept;

inline int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// (images, channels, pixels)
struct Images {
    int64_t n, channels, pixels;
    int64_t columns() const { return n * pixels; }
};

// Calls each(image, pixel, at, run) for the runs within an image of which `count` columns from `column` on are made; none
// reaches across the end of a panel.
template <class Each>
inline void runs(const Images& s, int64_t column, int64_t count, const Each& each) {
    int64_t image = column / s.pixels, pixel = column % s.pixels;
    for (int64_t at = 0; at < count;) {
        const int64_t run = least(least(s.pixels - pixel, count - at), WIDTH - at % WIDTH);
        each(image, pixel, at, run);
        at += run, pixel += run;
        if (pixel == s.pixels) image++, pixel = 0;
    }
}

// Rows with places between them that do not fall into the same lines of the cache
inline int64_t apart(int64_t inner) { return parts_of(inner, LANES) % 8 ? inner : inner + LANES; }

// w (rows, columns) -> (columns, step), step >= rows
void transposed(const float* w, int64_t rows, int64_t columns, int64_t step, float* to) {
    const int64_t down = parts_of(rows, LANES), across = parts_of(columns, LANES);
#pragma omp parallel for schedule(static) if (rows * columns >= WORTH)
    for (int64_t item = 0; item < down * across; item++) {
        const int64_t row = item % down * LANES, column = item / down * LANES;
        const int height = lanes(rows - row), width = lanes(columns - column);
        vec block[LANES];
        for (int i = 0; i < LANES; i++)
            block[i] = i < height ? load(w + (row + i) * columns + column, width) : vec{};
        transpose(block);
        for (int i = 0; i < width; i++) store(to + (column + i) * step + row, block[i], height);
    }
}

// up to two vectors
inline void copy(const float* from, int64_t count, float* to) {
    store(to, load(from, lanes(count)), lanes(count));
    if (count > LANES) store(to + LANES, load(from + LANES, lanes(count - LANES)), lanes(count - LANES));
}

// `count` columns of x from `column` on -> (panels, channels, WIDTH), 0 beyond the last column
void pack(const Images& s, const float* x, int64_t column, int64_t count, float* to) {
    const int64_t panel = s.channels * WIDTH;
    if (count % WIDTH) std::memset(to + count / WIDTH * panel, 0, panel * sizeof(float));
    // some channels at a time: where images are large, each gives all of its columns at once
    for (int64_t first = 0; first < s.channels; first += 4)
        runs(s, column, count, [&](int64_t image, int64_t pixel, int64_t at, int64_t run) {
            const float* from = x + (image * s.channels + first) * s.pixels + pixel;
            float* panels = to + at / WIDTH * panel + first * WIDTH + at % WIDTH;
            const int64_t channels = least(4, s.channels - first);
            if (run == WIDTH)
                for (int64_t c = 0; c < channels; c++) copy(from + c * s.pixels, WIDTH, panels + c * WIDTH);
            else
                for (int64_t c = 0; c < channels; c++) copy(from + c * s.pixels, run, panels + c * WIDTH);
        });
}

// w (rows, step), x (N, channels, pixels), bias (rows,) or null -> y (N, rows, pixels)
void product(const Images& s, int64_t rows, int64_t step, const float* w, const float* x, const float* bias, float* y) {
    const int64_t blocks = parts_of(s.columns(), COLUMNS), chunks = chunks_of(rows, blocks, parts_of(rows, ROWS));
    const Rows sides{s.channels, step};
#pragma omp parallel for schedule(static) if (s.columns() * s.channels * rows >= WORTH)
    for (int64_t item = 0; item < chunks * blocks; item++) {
        const int64_t part = item / blocks, column = item % blocks * COLUMNS;
        const int64_t count = least(COLUMNS, s.columns() - column), first = rows * part / chunks;
        const int64_t height = rows * (part + 1) / chunks - first, tiles = parts_of(height, ROWS);
        float* panels = scratch.of(COLUMNS * s.channels);
        pack(s, x, column, count, panels);
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t row = first + height * i / tiles, tile_rows = first + height * (i + 1) / tiles - row;
            for (int64_t at = 0; at < count; at += WIDTH) {
                alignas(64) float sums[ROWS * WIDTH];
                const float* panel = panels + at * s.channels;
                tile_of<2, ROWS>(tile_rows, sides, w + row * step, panel, {panel, 0}, {sums, WIDTH});
                for (int64_t r = 0; bias && r < tile_rows; r++)
                    for (int64_t j = 0; j < WIDTH; j++) sums[r * WIDTH + j] += bias[row + r];
                runs(s, column + at, least(WIDTH, count - at), [&](int64_t image, int64_t pixel, int64_t from, int64_t run) {
                    float* to = y + (image * rows + row) * s.pixels + pixel;
                    if (run == WIDTH)
                        for (int64_t r = 0; r < tile_rows; r++) copy(sums + r * WIDTH, WIDTH, to + r * s.pixels);
                    else
                        for (int64_t r = 0; r < tile_rows; r++) copy(sums + r * WIDTH + from, run, to + r * s.pixels);
                });
            }
        }
    }
}

// ----------------------------------------------------------------------------------- gradient of the weights

// pixels from `first` on of `runs` images from `image` on
struct Block {
    int64_t image, runs, first, pixels;
};

inline Block block_of(const Images& s, int64_t i) {
    if (s.pixels <= BLOCK) {
        const int64_t images = BLOCK / s.pixels;
        return {i * images, least(images, s.n - i * images), 0, s.pixels};
    }
    const int64_t parts = parts_of(s.pixels, BLOCK), part = i % parts;
    const int64_t first = s.pixels * part / parts;
    return {i / parts, 1, first, s.pixels * (part + 1) / parts - first};
}

inline int64_t blocks(const Images& s) {
    return s.pixels <= BLOCK ? parts_of(s.n, BLOCK / s.pixels) : s.n * parts_of(s.pixels, BLOCK);
}

// `channels` of maps -> (pixels of the block, VECTORS LANES)
template <int VECTORS>
void transposed_panel(const Images& s, const Block& b, const float* maps, int64_t channel, float* to) {
    constexpr int WIDTH = VECTORS * LANES;
    for (int64_t run = 0; run < b.runs; run++)
        for (int64_t i = 0; i < b.pixels; i += LANES) {
            const int count = lanes(b.pixels - i);
            for (int v = 0; v < VECTORS; v++) {
                const int64_t from = channel + v * LANES, own = lanes(s.channels - from);
                const float* map = maps + ((b.image + run) * s.channels + from) * s.pixels + b.first + i;
                vec square[LANES];
                for (int c = 0; c < LANES; c++) square[c] = c < own ? load(map + c * s.pixels, count) : vec{};
                transpose(square);
                float* out = to + (run * b.pixels + i) * WIDTH + v * LANES;
                for (int j = 0; j < count; j++) store(out + j * WIDTH, square[j]);
            }
        }
}

template <int VECTORS>
void add_panel(const Images& s, const Block& b, const float* maps, int64_t channel, int64_t rows, const float* others,
               bool begin, int64_t step, float* to) {
    float* panel = scratch.of((b.runs * b.pixels) * VECTORS * LANES);
    transposed_panel<VECTORS>(s, b, maps, channel, panel);
    const Rows sides{b.pixels, s.pixels, b.runs, rows * s.pixels};
    const float* from = others + b.image * rows * s.pixels + b.first;
    all_tiles_to<VECTORS>(rows, sides, from, panel, nullptr, 0, [&](float* sums, int64_t row, int64_t tile_rows) {
        for (int64_t r = 0; r < tile_rows; r++)
            for (int v = 0; v < VECTORS; v++) {
                float* at = to + (row + r) * step + channel + v * LANES;
                const vec own = load(sums + (r * VECTORS + v) * LANES);
                store(at, begin ? own : load(at) + own);
            }
    });
}

// The sums over all pixels of others (N, rows, pixels) times maps (N, channels, pixels) -> (rows, channels), or
// (channels, rows) if `across`. Parts of the pixels have sums of their own, which are added in their order.
void weights_gradient(const Images& s, const float* maps, int64_t rows, const float* others, bool across, float* to) {
    const int64_t step = parts_of(s.channels, LANES) * LANES, count = blocks(s), groups = parts_of(s.channels, GROUP);
    const int64_t parts = least(count, groups >= 4 ? 1 : 8 / groups);
    float* partial = kept.of(parts * rows * step);
#pragma omp parallel if (s.columns() * s.channels * rows >= WORTH)
    {
#pragma omp for schedule(static)
        for (int64_t item = 0; item < parts * groups; item++) {
            const int64_t part = item / groups, channel = item % groups * GROUP;
            const int64_t end = least(channel + GROUP, s.channels), begin = count * part / parts;
            for (int64_t i = begin; i < count * (part + 1) / parts; i++) {
                const Block b = block_of(s, i);
                float* own = partial + part * rows * step;
                for (int64_t c = channel; c < end; c += 2 * LANES)
                    if (end - c <= LANES)
                        add_panel<1>(s, b, maps, c, rows, others, i == begin, step, own);
                    else
                        add_panel<2>(s, b, maps, c, rows, others, i == begin, step, own);
            }
        }
        const int64_t bands = parts_of(rows, LANES);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < bands * (step / LANES); item++) {
            const int64_t row = item % bands * LANES, channel = item / bands * LANES;
            const int height = lanes(rows - row), width = lanes(s.channels - channel);
            vec square[LANES];
            for (int r = 0; r < LANES; r++) {
                vec total = {};
                for (int64_t part = 0; r < height && part < parts; part++)
                    total += load(partial + (part * rows + row + r) * step + channel);
                square[r] = total;
            }
            if (across) {
                transpose(square);
                for (int c = 0; c < width; c++) store(to + (channel + c) * rows + row, square[c], height);
            } else {
                for (int r = 0; r < height; r++) store(to + (row + r) * s.channels + channel, square[r], width);
            }
        }
    }
}

}  // namespace

// sizes: N, channels in, pixels of a map, channels out. x (N, C, P), w (O, C), bias (O,) or null -> y (N, O, P)
extern "C" void pointwise_forward(const int64_t* sizes, const float* x, const float* w, const float* bias, float* y) {
    const int64_t outer = sizes[3];
    const Images s{sizes[0], sizes[1], sizes[2]};
    const int64_t step = apart(s.channels);
    if (step != s.channels) {
        float* rows = kept.of(outer * step);
        for (int64_t o = 0; o < outer; o++)
            std::memcpy(rows + o * step, w + o * s.channels, s.channels * sizeof(float));
        w = rows;
    }
    product(s, outer, step, w, x, bias, y);
}

// the gradients of x, w and bias, each of which may be null
extern "C" void pointwise_backward(const int64_t* sizes, const float* x, const float* w, const float* g,
                                   float* x_gradient, float* w_gradient, float* bias_gradient) {
    const int64_t outer = sizes[3];
    const Images in{sizes[0], sizes[1], sizes[2]}, out{in.n, outer, in.pixels};
    if (x_gradient) {
        const int64_t step = apart(outer);
        float* rows = kept.of(in.channels * step);
        transposed(w, outer, in.channels, step, rows);
        product(out, in.channels, step, rows, g, nullptr, x_gradient);
    }
    if (w_gradient) {
        // the side of fewer channels is turned
        if (in.channels <= outer)
            weights_gradient(in, x, outer, g, false, w_gradient);
        else
            weights_gradient(out, g, in.channels, x, true, w_gradient);
    }
    if (bias_gradient) {
#pragma omp parallel for schedule(static) if (outer * out.columns() >= WORTH)
        for (int64_t o = 0; o < outer; o++) {
            float total = 0;
            for (int64_t image = 0; image < in.n; image++) {
                const float* map = g + (image * outer + o) * in.pixels;
                vec own = {};
                for (int64_t i = 0; i < in.pixels; i += LANES) own += load(map + i, lanes(in.pixels - i));
                total += sum(own);
            }
            bias_gradient[o] = total;
        }
    }
}
