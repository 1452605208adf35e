// Convolution of maps (N, C, H, W) in groups or in one, any kernel, stride and padding, with its gradients.
//
// Strips of rows are laid out (maps.h), so that vectors run along them; a tile of channels by vectors stays in registers
// while it goes through the taps. The gradient of the weights puts output channels in the lanes where a group has enough
// of them, else places. Every sum is made by one thread in one order: the bits depend neither on the run nor on the
// number of threads.

#include <omp.h>

#include "maps.h"

namespace {

// tiles of many and of few channels, in vectors: what the registers hold
constexpr int MANY = LANES == 16 ? 8 : 4, MANY_WIDTH = 3;
constexpr int FEW = LANES == 16 ? 4 : 2, FEW_WIDTH = LANES == 16 ? 6 : 4;
constexpr int64_t STRIP = 48 * 1024;   // floats of a laid-out strip, about: they stay in the cache
constexpr int64_t BLOCK = 128 * 1024;  // of a block of images, for the gradient of the weights

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }
int64_t round_up(int64_t count, int64_t step) { return parts_of(count, step) * step; }

struct Shape : Maps {
    int64_t n, channels, out_channels, groups;
    int64_t inner() const { return channels / groups; }
    int64_t outer() const { return out_channels / groups; }
    int64_t area() const { return height * width; }
    int64_t out_area() const { return out_height * out_width; }
};

Shape shape_of(const int64_t* s) {
    return {{s[2], s[3], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13]}, s[0], s[1], s[4], s[5]};
}

// How many rows a strip has of `rows`, each of which takes `floats`: strips of the same height, nearly.
int64_t strip_rows(int64_t rows, int64_t floats) {
    const int64_t most_rows = most(STRIP / most(floats, 1), 1);
    return parts_of(rows, parts_of(rows, most_rows));
}

thread_local Scratch scratch, packed, order_kept;

// Tiles of rows of `from`: weights(k, i) of channel i and term k -> (tiles, terms, channels of a tile), 0 beyond the last
template <typename Weight>
void pack(float* to, int64_t channels, int64_t terms, Weight weight) {
    for (int64_t first = 0; first < channels;) {
        const int64_t size = channels - first > FEW ? MANY : FEW;
        for (int64_t k = 0; k < terms; k++)
            for (int64_t i = first; i < first + size; i++) *to++ = i < channels ? weight(k, i) : 0.0f;
        first += size;
    }
}

// The places and terms of a sum: of `channels` maps, `stride` apart, each shifted by `taps` shifts.
struct Terms {
    const float* from;
    int64_t channels, stride;
    const int64_t* shifts;
    int64_t taps;
};

// to[o][i] = sum over terms of weights[term][o] * from[term][i], for OUT channels and WIDTH vectors
template <int OUT, int WIDTH>
void tile(const Terms& terms, int64_t place, const float* weights, float* to, int64_t to_stride) {
    vec sums[OUT][WIDTH] = {};
    const float* from = terms.from + place;
    for (int64_t c = 0; c < terms.channels; c++, from += terms.stride)
        for (int64_t t = 0; t < terms.taps; t++, weights += OUT) {
            const float* own = from + terms.shifts[t];
            vec x[WIDTH];
#pragma GCC unroll 8
            for (int v = 0; v < WIDTH; v++) x[v] = load(own + v * LANES);
#pragma GCC unroll 8
            for (int o = 0; o < OUT; o++) {
                const vec w = all(weights[o]);
#pragma GCC unroll 8
                for (int v = 0; v < WIDTH; v++) sums[o][v] += w * x[v];
            }
        }
#pragma GCC unroll 8
    for (int o = 0; o < OUT; o++)
#pragma GCC unroll 8
        for (int v = 0; v < WIDTH; v++) store(to + o * to_stride + place + v * LANES, sums[o][v]);
}

template <int OUT, int WIDTH>
void tile_of(int64_t width, const Terms& terms, int64_t place, const float* weights, float* to, int64_t to_stride) {
    if constexpr (WIDTH > 1) {
        if (width < WIDTH) return tile_of<OUT, WIDTH - 1>(width, terms, place, weights, to, to_stride);
    }
    tile<OUT, WIDTH>(terms, place, weights, to, to_stride);
}

// the same for `length` places, in tiles of nearly the same width
template <int OUT, int WIDTH>
void along(const Terms& terms, int64_t length, const float* weights, float* to, int64_t to_stride) {
    const int64_t vectors = parts_of(length, LANES), tiles = parts_of(vectors, WIDTH);
    for (int64_t t = 0, done = 0; t < tiles; t++) {
        const int64_t width = parts_of(vectors - done, tiles - t);
        tile_of<OUT, WIDTH>(width, terms, done * LANES, weights, to, to_stride);
        done += width;
    }
}

// For tiles of channels in turn: `then(first, count)` reads what stands in `to`.
template <typename Do>
void by_tile(int64_t channels, Do work) {
    for (int64_t first = 0; first < channels; first += channels - first > FEW ? MANY : FEW)
        work(first, least(channels - first, channels - first > FEW ? MANY : FEW), channels - first > FEW);
}

void correlate(bool many, const Terms& terms, int64_t length, const float* weights, float* to, int64_t to_stride) {
    if (many) return along<MANY, MANY_WIDTH>(terms, length, weights, to, to_stride);
    along<FEW, FEW_WIDTH>(terms, length, weights, to, to_stride);
}

// ---------------------------------------------------------------------------------------- gradient of the input

void input_gradient(const Shape& s, const float* weight, const float* g, float* x_gradient) {
    const int64_t inner = s.inner(), outer = s.outer(), taps = s.taps(), phases = s.phases(), group_terms = outer * taps;
    const int64_t weights = round_up(inner, MANY) * group_terms;
    // the taps of a phase, one phase after the other
    int64_t* order = reinterpret_cast<int64_t*>(order_kept.of(2 * (taps + phases + 1)));
    int64_t* begin = order + taps;
    for (int64_t phase = 0, count = 0; phase < phases; phase++) {
        begin[phase] = count;
        for (int64_t t = 0; t < taps; t++)
            if (s.phase(t) == phase) order[count++] = t;
        begin[phase + 1] = count;
    }
    const int64_t lines = (s.height - 1 + s.top) / s.stride_y + 1, reach_y = (s.rows - 1) / s.stride_y;
    const int64_t reach_x = (s.columns - 1) / s.stride_x;
    const int64_t rows = strip_rows(lines, outer * s.line()), strips = parts_of(lines, rows);
    float* kept = packed.of(s.groups * weights);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t group = 0; group < s.groups; group++)
            for (int64_t phase = 0; phase < phases; phase++) {
                const int64_t own = begin[phase + 1] - begin[phase];
                // (phases, tiles, outer, taps of the phase, channels of a tile)
                pack(kept + group * weights + round_up(inner, MANY) * outer * begin[phase], inner, outer * own,
                     [&](int64_t k, int64_t i) {
                         const int64_t o = group * outer + k / own, t = order[begin[phase] + k % own];
                         return weight[(o * inner + i) * taps + t];
                     });
            }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < s.n * s.groups * strips; item++) {
            const int64_t strip = item % strips, group = item / strips % s.groups, image = item / strips / s.groups;
            const int64_t first = strip * rows, count = least(rows, lines - first);
            const Maps part = s.strip(first, count);
            const int64_t g_map = reach_x + (count + reach_y) * s.line() + s.beyond(), back_map = part.laid_out();
            float* back = scratch.of(MANY * phases * back_map + 2 * taps + outer * g_map);
            int64_t* shifts = reinterpret_cast<int64_t*>(back + MANY * phases * back_map);
            float* spread_g = back + MANY * phases * back_map + 2 * taps;
            for (int64_t t = 0; t < taps; t++) shifts[t] = -s.shift(order[t]);
            for (int64_t o = 0; o < outer; o++)
                spread(s, g + (image * s.out_channels + group * outer + o) * s.out_area(), spread_g + o * g_map, reach_x,
                       first - reach_y, count + reach_y, s.beyond());
            const int64_t first_row = most(first * s.stride_y - s.top, 0);
            const int64_t last_row = least((first + count) * s.stride_y - s.top, s.height);
            by_tile(inner, [&](int64_t c, int64_t tile_channels, bool many) {
                for (int64_t phase = 0; phase < phases; phase++) {
                    const int64_t own = begin[phase + 1] - begin[phase];
                    const Terms terms{spread_g + s.reach(), outer, g_map, shifts + begin[phase], own};
                    const float* own_weights = kept + group * weights + round_up(inner, MANY) * outer * begin[phase];
                    correlate(many, terms, part.length(), own_weights + c * outer * own, back + phase * back_map,
                              phases * back_map);
                }
                for (int64_t i = 0; i < tile_channels; i++)
                    gather(part, back + i * phases * back_map,
                           x_gradient + (image * s.channels + group * inner + c + i) * s.area(), first_row, last_row);
            });
        }
    }
}

// ---------------------------------------------------------------------------------------- gradient of the weights

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
                for (int o = 0; o < OUT; o++) kept[o][k] += values[o] * value;
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
                        for (int v = 0; v < VECS; v++) kept[v][r][j] += values[v] * value;
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

}  // namespace

// sizes: N, channels in, height, width, channels out, groups, the kernel's height and width, steps down and across,
// padding at the top and left, the result's height and width. x (N, C, H, W), weight (O, C / groups, k, l), bias (O,) or
// null -> y (N, O, H', W')
extern "C" void conv_forward(const int64_t* sizes, const float* x, const float* weight, const float* bias, float* y) {
    const Shape s = shape_of(sizes);
    const int64_t inner = s.inner(), outer = s.outer(), taps = s.taps(), terms = inner * taps;
    const int64_t weights = round_up(outer, MANY) * terms;
    const int64_t rows = strip_rows(s.out_height, inner * s.phases() * s.line()), strips = parts_of(s.out_height, rows);
    float* kept = packed.of(s.groups * weights);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t group = 0; group < s.groups; group++)
            pack(kept + group * weights, outer, terms,
                 [&](int64_t k, int64_t o) { return weight[(group * outer + o) * terms + k]; });
#pragma omp for schedule(static)
        for (int64_t item = 0; item < s.n * s.groups * strips; item++) {
            const int64_t strip = item % strips, group = item / strips % s.groups, image = item / strips / s.groups;
            const int64_t first = strip * rows;
            const Maps part = s.strip(first, least(rows, s.out_height - first));
            const int64_t map = s.phases() * part.laid_out(), out_map = part.laid_out();
            float* out = scratch.of(MANY * out_map + 2 * taps + inner * map);
            int64_t* shifts = reinterpret_cast<int64_t*>(out + MANY * out_map);
            float* laid = out + MANY * out_map + 2 * taps;
            for (int64_t t = 0; t < taps; t++) shifts[t] = part.phase(t) * part.laid_out() + part.shift(t);
            for (int64_t c = 0; c < inner; c++)
                lay_out(part, x + (image * s.channels + group * inner + c) * s.area(), laid + c * map);
            const Terms all_terms{laid, inner, map, shifts, taps};
            by_tile(outer, [&](int64_t o, int64_t tile_channels, bool many) {
                correlate(many, all_terms, part.length(), kept + group * weights + o * terms, out, out_map);
                for (int64_t i = 0; i < tile_channels; i++) {
                    const int64_t channel = group * outer + o + i;
                    take_out(part, out + i * out_map, bias ? bias[channel] : 0.0f,
                             y + (image * s.out_channels + channel) * s.out_area() + first * s.out_width);
                }
            });
        }
    }
}

// the gradients of x, weight and bias, each of which may be null
extern "C" void conv_backward(const int64_t* sizes, const float* x, const float* weight, const float* g,
                              float* x_gradient, float* weight_gradient, float* bias_gradient) {
    const Shape s = shape_of(sizes);
    if (x_gradient) input_gradient(s, weight, g, x_gradient);
    if (weight_gradient) weights_gradient(s, x, g, weight_gradient);
    if (bias_gradient) {
#pragma omp parallel for schedule(static)
        for (int64_t o = 0; o < s.out_channels; o++) {
            float total = 0;
            for (int64_t image = 0; image < s.n; image++) {
                const float* map = g + (image * s.out_channels + o) * s.out_area();
                vec own = {};
                for (int64_t i = 0; i < s.out_area(); i += LANES) own += load(map + i, lanes(s.out_area() - i));
                total += sum(own);
            }
            bias_gradient[o] = total;
        }
    }
}
