// Convolution of maps (N, C, H, W) in groups or in one, any kernel, stride and padding, with its gradients.
//
// Strips of rows are laid out (maps.h), so that vectors run along them; a tile of channels by vectors stays in registers
// while it goes through the taps. The gradient of the weights is in conv_weights.cpp. Every sum is made by one thread in
// one order: the bits depend neither on the run nor on the number of threads.

#include "conv.h"

namespace {

constexpr int64_t STRIP = 48 * 1024;  // floats of a laid-out strip, about: they stay in the cache

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
                for (int v = 0; v < WIDTH; v++) sums[o][v] = fused(w, x[v], sums[o][v]);
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
