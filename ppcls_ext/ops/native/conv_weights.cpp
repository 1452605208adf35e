// The gradient of a convolution's weights.
//
// Output channels stand in the lanes where a group has enough of them, else places. Every sum is made by one thread in
// one order: the bits depend neither on the run nor on the number of threads.

#include "conv.h"

namespace {

constexpr int64_t BLOCK = 128 * 1024;  // floats of a block of images, about: they stay in the cache

thread_local Scratch scratch;

// Images whose places one sum goes through without leaving the registers, or a strip of rows of one image.
struct Block {
    int64_t image, images, first, count;
};

struct Blocks {
    const Shape& s;
    int64_t images, rows;
    Blocks(const Shape& shape, int64_t floats_per_row) : s(shape) {
        const int64_t most_rows = most(BLOCK / most(floats_per_row, 1), 1);
        rows = parts_of(s.out_height, parts_of(s.out_height, most_rows));
        images = rows < s.out_height ? 1 : most(least(most_rows / s.out_height, s.n), 1);
    }
    template <typename Do>
    void each(Do work) const {
        for (int64_t image = 0; image < s.n; image += images)
            for (int64_t first = 0; first < s.out_height; first += rows)
                work(Block{image, least(images, s.n - image), first, least(rows, s.out_height - first)});
    }
};

// sums[o][k] += g[o][i] * from[k][i] over the places, lane by lane
template <int OUT, int TERMS>
void places_tile(vec* sums, int64_t sums_stride, const float* g, int64_t g_stride, int64_t g_image, const float* x,
                 const int64_t* offsets, int64_t x_image, int64_t images, int64_t length) {
    vec kept[OUT][TERMS] = {};
    for (int64_t b = 0; b < images; b++) {
        const float* own = g + b * g_image;
        const float* from[TERMS];
        for (int k = 0; k < TERMS; k++) from[k] = x + b * x_image + offsets[k];
        for (int64_t i = 0; i < length; i += LANES) {
            vec values[OUT];
#pragma GCC unroll 8
            for (int o = 0; o < OUT; o++) values[o] = load(own + o * g_stride + i);
#pragma GCC unroll 8
            for (int k = 0; k < TERMS; k++) {
                const vec value = load(from[k] + i);
#pragma GCC unroll 8
                for (int o = 0; o < OUT; o++) kept[o][k] = fused(values[o], value, kept[o][k]);
            }
        }
    }
    for (int o = 0; o < OUT; o++)
        for (int k = 0; k < TERMS; k++) sums[o * sums_stride + k] += kept[o][k];
}

template <int OUT, int TERMS>
void places_terms(vec* sums, int64_t terms, const float* g, int64_t g_stride, int64_t g_image, const float* x,
                  const int64_t* offsets, int64_t x_image, int64_t images, int64_t length) {
    int64_t k = 0;
    for (; k + TERMS <= terms; k += TERMS)
        places_tile<OUT, TERMS>(sums + k, terms, g, g_stride, g_image, x, offsets + k, x_image, images, length);
    for (; k < terms; k++)
        places_tile<OUT, 1>(sums + k, terms, g, g_stride, g_image, x, offsets + k, x_image, images, length);
}

// The output channels from `begin` to before `end` of a group, with places in the lanes.
void weights_by_place(const Shape& s, int64_t group, int64_t begin, int64_t end, const float* x, const float* g,
                      float* weight_gradient) {
    const int64_t inner = s.inner(), own = end - begin, terms = inner * s.taps();
    // not of `own`, which depends on the threads: the blocks decide the order of the sums
    const Blocks blocks(s, (inner * s.phases() + s.outer()) * s.line());
    const Maps widest = s.strip(0, blocks.rows);
    const int64_t x_map = s.phases() * widest.laid_out(), g_map = round_up(widest.length() + LANES, LANES);
    float* laid = scratch.of(inner * blocks.images * x_map + own * blocks.images * g_map + own * terms * LANES + 2 * terms + LANES);
    float* spread_g = laid + round_up(inner * blocks.images * x_map, LANES);
    vec* sums = reinterpret_cast<vec*>(spread_g + own * blocks.images * g_map);
    int64_t* offsets = reinterpret_cast<int64_t*>(sums + own * terms);
    for (int64_t i = 0; i < own * terms; i++) sums[i] = vec{};
    blocks.each([&](const Block& block) {
        const Maps part = s.strip(block.first, block.count);
        for (int64_t b = 0; b < block.images; b++) {
            for (int64_t c = 0; c < inner; c++)
                lay_out(part, x + ((block.image + b) * s.channels + group * inner + c) * s.area(),
                        laid + (c * block.images + b) * x_map);
            for (int64_t o = 0; o < own; o++)
                spread(s, g + ((block.image + b) * s.out_channels + group * s.outer() + begin + o) * s.out_area(),
                       spread_g + (o * block.images + b) * g_map, 0, block.first, block.count, LANES);
        }
        for (int64_t c = 0; c < inner; c++)
            for (int64_t t = 0; t < s.taps(); t++)
                offsets[c * s.taps() + t] = c * block.images * x_map + part.phase(t) * part.laid_out() + part.shift(t);
        const int64_t stride = block.images * g_map;
        int64_t o = 0;
        for (; o + FEW <= own; o += FEW)
            places_terms<FEW, FEW_WIDTH>(sums + o * terms, terms, spread_g + o * stride, stride, g_map, laid, offsets,
                                         x_map, block.images, part.length());
        for (; o < own; o++)
            places_terms<1, FEW_WIDTH>(sums + o * terms, terms, spread_g + o * stride, stride, g_map, laid, offsets,
                                       x_map, block.images, part.length());
    });
    for (int64_t i = 0; i < own * terms; i++)
        weight_gradient[(group * s.outer() + begin) * terms + i] = sum(sums[i]);
}

// sums[k][o] += g[place][o] * from[k][place], o in the lanes of VECS vectors; ROWS runs of COLUMNS neighbouring terms
template <int VECS, int ROWS, int COLUMNS>
void channels_tile(vec* sums, int64_t sums_stride, const float* g, int64_t g_stride, const float* const* from,
                   int64_t columns, const Shape& s, int64_t line, int64_t x_image, const Block& block) {
    vec kept[VECS][ROWS][COLUMNS] = {};
    for (int64_t b = 0; b < block.images; b++)
        for (int64_t y = 0; y < block.count; y++) {
            const float* row[ROWS];
            for (int r = 0; r < ROWS; r++) row[r] = from[r] + b * x_image + y * s.stride_y * line;
            for (int64_t place = 0; place < s.out_width; place++, g += LANES) {
                vec values[VECS];
#pragma GCC unroll 8
                for (int v = 0; v < VECS; v++) values[v] = load(g + v * g_stride);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 16
                    for (int j = 0; j < COLUMNS; j++) {
                        const vec value = all(row[r][j]);
#pragma GCC unroll 8
                        for (int v = 0; v < VECS; v++) kept[v][r][j] = fused(values[v], value, kept[v][r][j]);
                    }
                    row[r] += s.stride_x;
                }
            }
        }
    for (int v = 0; v < VECS; v++)
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < COLUMNS; j++) sums[v * sums_stride + r * columns + j] += kept[v][r][j];
}

template <int VECS, int ROWS, int COLUMNS>
void channels_tile_of(int64_t rows, vec* sums, int64_t sums_stride, const float* g, int64_t g_stride,
                      const float* const* from, int64_t columns, const Shape& s, int64_t line, int64_t x_image,
                      const Block& block) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS)
            return channels_tile_of<VECS, ROWS - 1, COLUMNS>(rows, sums, sums_stride, g, g_stride, from, columns, s,
                                                             line, x_image, block);
    }
    channels_tile<VECS, ROWS, COLUMNS>(sums, sums_stride, g, g_stride, from, columns, s, line, x_image, block);
}

// all rows of terms for COLUMNS columns, `from` their first place, in tiles of nearly as many rows
template <int VECS, int ROWS, int COLUMNS>
void channels_rows(vec* sums, int64_t sums_stride, const float* g, int64_t g_stride, const float* const* from,
                   int64_t rows, const Shape& s, int64_t line, int64_t x_image, const Block& block) {
    const int64_t tiles = parts_of(rows, ROWS);
    for (int64_t t = 0, r = 0; t < tiles; t++) {
        const int64_t own = parts_of(rows - r, tiles - t);
        channels_tile_of<VECS, ROWS, COLUMNS>(own, sums + r * s.columns, sums_stride, g, g_stride, from + r, s.columns,
                                              s, line, x_image, block);
        r += own;
    }
}

template <int VECS>
void channels_terms(vec* sums, int64_t sums_stride, const float* g, int64_t g_stride, const float** from, int64_t rows,
                    const Shape& s, int64_t line, int64_t x_image, const Block& block) {
    constexpr int TERMS = LANES == 16 ? 12 : 6;  // at once: as many sums as there are registers
    for (int64_t j = 0, step; j < s.columns; j += step) {
        const int64_t left = s.columns - j;
        step = left == 4 || left > 6 ? 4 : least(left, 3);
        const auto rows_of = step == 4   ? channels_rows<VECS, most(TERMS / 4, 1), 4>
                             : step == 3 ? channels_rows<VECS, TERMS / 3, 3>
                             : step == 2 ? channels_rows<VECS, TERMS / 3, 2>
                                         : channels_rows<VECS, TERMS / 3, 1>;
        rows_of(sums + j, sums_stride, g, g_stride, from, rows, s, line, x_image, block);
        for (int64_t r = 0; r < rows; r++) from[r] += step;
    }
}

// (channels, places) -> (channels / LANES, places, LANES), 0 beyond the last channel
void turn(const float* from, int64_t stride, int64_t channels, int64_t places, float* to, int64_t to_stride) {
    for (int64_t first = 0; first < channels; first += LANES, to += to_stride)
        for (int64_t i = 0; i < places; i += LANES) {
            const int own = lanes(channels - first), count = lanes(places - i);
            vec rows[LANES] = {};
            for (int o = 0; o < own; o++) rows[o] = load(from + (first + o) * stride + i, count);
            transpose(rows);
            for (int k = 0; k < count; k++) store(to + (i + k) * LANES, rows[k]);
        }
}

// The output channels from `begin` to before `end` of a group, with output channels in the lanes.
void weights_by_channel(const Shape& s, int64_t group, int64_t begin, int64_t end, const float* x, const float* g,
                        float* weight_gradient) {
    const int64_t inner = s.inner(), own = end - begin, terms = inner * s.taps();
    // of the places between those of the output too: neighbouring taps lie side by side
    Maps dense = s;
    dense.stride_y = dense.stride_x = 1;
    dense.out_width = (s.out_width - 1) * s.stride_x + 1;
    const int64_t vectors = parts_of(own, LANES), line = dense.line();
    const Blocks blocks(s, inner * s.stride_y * line + round_up(s.outer(), LANES) * s.out_width);  // not of `own`, see above
    dense.out_height = (blocks.rows - 1) * s.stride_y + 1;
    const int64_t x_map = dense.laid_out(), g_map = blocks.rows * s.out_width * LANES;
    const int64_t x_size = round_up(inner * blocks.images * x_map, LANES), g_stride = blocks.images * g_map;
    float* laid = scratch.of(x_size + vectors * g_stride + vectors * terms * LANES + 2 * inner * s.rows);
    float* turned = laid + x_size;
    vec* sums = reinterpret_cast<vec*>(turned + vectors * g_stride);
    const float** from = reinterpret_cast<const float**>(sums + vectors * terms);
    for (int64_t i = 0; i < vectors * terms; i++) sums[i] = vec{};
    blocks.each([&](const Block& block) {
        dense.out_height = (block.count - 1) * s.stride_y + 1;
        dense.top = s.top - block.first * s.stride_y;
        const int64_t places = block.count * s.out_width;
        for (int64_t b = 0; b < block.images; b++) {
            for (int64_t c = 0; c < inner; c++)
                lay_out(dense, x + ((block.image + b) * s.channels + group * inner + c) * s.area(),
                        laid + (c * block.images + b) * x_map);
            const int64_t channel = (block.image + b) * s.out_channels + group * s.outer() + begin;
            turn(g + channel * s.out_area() + block.first * s.out_width, s.out_area(), own, places,
                 turned + b * places * LANES, g_stride);
        }
        for (int64_t v = 0; v < vectors; v += 2) {
            for (int64_t c = 0; c < inner; c++)
                for (int64_t i = 0; i < s.rows; i++) from[c * s.rows + i] = laid + c * block.images * x_map + i * line;
            const float* own_g = turned + v * g_stride;
            if (v + 2 <= vectors)
                channels_terms<2>(sums + v * terms, terms, own_g, g_stride, from, inner * s.rows, s, line, x_map, block);
            else
                channels_terms<1>(sums + v * terms, terms, own_g, g_stride, from, inner * s.rows, s, line, x_map, block);
        }
    });
    float* to = weight_gradient + (group * s.outer() + begin) * terms;
    for (int64_t o = 0; o < own; o++)
        for (int64_t k = 0; k < terms; k++) to[o * terms + k] = sums[o / LANES * terms + k][o % LANES];
}

}  // namespace

void weights_gradient(const Shape& s, const float* x, const float* g, float* weight_gradient) {
    const bool by_channel = s.outer() >= LANES * 3 / 4;
    // a group is shared between threads where there are fewer groups than threads
    const int64_t step = by_channel ? 2 * LANES : FEW, threads = omp_get_max_threads();
    const int64_t parts = s.groups >= threads ? 1 : least(parts_of(s.outer(), step), threads);
    const int64_t share = round_up(parts_of(s.outer(), parts), step);
#pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < s.groups * parts; item++) {
        const int64_t group = item / parts, begin = item % parts * share, end = least(begin + share, s.outer());
        if (begin >= end) continue;
        (by_channel ? weights_by_channel : weights_by_place)(s, group, begin, end, x, g, weight_gradient);
    }
}
