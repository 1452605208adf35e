// GroupMamba in evaluation, all of it. A block is norm, scans of four groups of channels weighed by the channels'
// affinity, norm, product, and the MLP with its depthwise convolution; both with what they are added to.
//
// Few images pass through a block together, so that what lies between the steps stays in the cache. Where the MLP of
// one image is too large for that, rows of its map pass through the MLP one by one. Of many images each thread takes
// some through a stage by itself, and none waits for another before the stage ends.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "steps.h"

namespace {

constexpr int64_t GROUPS = 4;
constexpr int64_t TOGETHER = 784;  // tokens: so many images at once that weights are packed for them all
constexpr int64_t ALONE = 196;     // tokens: so many at least, for the same reason, that a thread takes by itself
constexpr int64_t BANDED = 512 * 1024;  // values inside of an image's MLP from which on rows pass one by one
constexpr int64_t BAND = 4;             // rows, at least, of those that one thread takes
constexpr int64_t LINE = 16;            // values in a line of the cache

thread_local Scratch scratch;

// The order of the weights; those of a group of channels come four times, group by group.
enum { NORM, NORM_BIAS, FC1, FC1_BIAS, FC2, FC2_BIAS, SKIP, OF_GROUPS };
enum { IN, CONV, CONV_BIAS, LOW, STEP, STEP_BIAS, A_LOG, D, OUT_NORM, OUT_NORM_BIAS, OUT, OF_A_GROUP };
enum { PROJ = OF_GROUPS + GROUPS * OF_A_GROUP, PROJ_BIAS, AFTER, AFTER_BIAS, NORM2, NORM2_BIAS, MLP1, MLP1_BIAS,
       MLP_CONV, MLP_CONV_BIAS, MLP2, MLP2_BIAS, OF_A_BLOCK };
// and of the epsilons
enum { NORM_EPSILON, OUT_EPSILON, AFTER_EPSILON, NORM2_EPSILON };
constexpr int BLOCK_EPSILONS = 2, STAGE_EPSILON = 6;  // where they are among those of a network

struct Shape {
    int64_t n, height, width, channels, rank, reduced, hidden, blocks;
    int64_t threads = omp_get_max_threads();  // that work on it together
    int64_t length() const { return height * width; }
    int64_t group() const { return channels / GROUPS; }
    int64_t together() const {
        const int64_t images = (TOGETHER + length() - 1) / length();
        return images < n ? images : n;
    }
    // How far tokens lie apart inside of the MLP: an even number of lines would put them into few sets of the cache
    int64_t wide() const { return ((hidden + LINE - 1) / LINE | 1) * LINE; }
    // How many images at once a thread takes through the stage by itself; 0: all threads work on the same ones
    int64_t alone() const {
        const int64_t most = std::min(n / threads, together());
        if (threads == 1 || most == 0) return 0;
        // four turns for each, so that the last to end is not late by much
        return std::min(most, std::max((ALONE + length() - 1) / length(), n / (4 * threads)));
    }
    // In how many bands the MLP takes the map of an image; 0: all of it at once. No sum depends on it.
    int64_t bands() const {
        if (length() * hidden < BANDED || height < BAND) return 0;
        return std::min(threads, height / BAND);
    }
    ProductShape into_mlp(int64_t rows) const { return {rows, channels, hidden, channels, hidden, 1, wide()}; }
    ProductShape out_of_mlp(int64_t rows) const { return {rows, hidden, channels, wide(), channels, 1, channels}; }
};

struct Weights {
    const float* const* of;
    const float* const* group(int which) {
        for (int g = 0; g < GROUPS; g++) groups[g] = of[OF_GROUPS + g * OF_A_GROUP + which];
        return groups;
    }
    const float* groups[GROUPS];
};

void product(int64_t rows, int64_t inner, int64_t columns, const float* x, const float* w, const float* bias, float* y,
             const float* added = nullptr) {
    const Product one{x, w, y, bias, nullptr, nullptr, added};
    multiply({rows, inner, columns, inner, columns, 1, columns}, &one, 1);
}

// (n, length, channels) -> (n, channels)
void mean(const Shape& s, int64_t n, const float* x, float* to) {
    const int64_t blocks = (s.channels + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) if (n * s.length() * s.channels >= 16384)
    for (int64_t item = 0; item < n * blocks; item++) {
        const int64_t image = item / blocks, c = item % blocks * LANES;
        const int count = lanes(s.channels - c);
        vec sums[4] = {};
        for (int64_t t = 0; t < s.length(); t++) sums[t % 4] += load(x + (image * s.length() + t) * s.channels + c, count);
        store(to + image * s.channels + c, (sums[0] + sums[1] + sums[2] + sums[3]) / all(s.length()), count);
    }
}

// What each channel of each image counts: (n, length, channels) -> (n, channels)
void affinity(const Shape& s, int64_t n, const float* const* w, const float* x, float* room, float* to) {
    float *means = room, *reduced = room + n * s.channels;
    mean(s, n, x, means);
    product(n, s.channels, s.reduced, means, w[FC1], w[FC1_BIAS], reduced);
    for (int64_t i = 0; i < n * s.reduced; i++) reduced[i] = reduced[i] < 0.0f ? 0.0f : reduced[i];
    product(n, s.reduced, s.channels, reduced, w[FC2], w[FC2_BIAS], to);
    for (int64_t i = 0; i < n * s.channels; i += LANES) {
        const int count = lanes(n * s.channels - i);
        store(to + i, sigmoid(load(to + i, count)) * w[SKIP][0], count);
    }
}

// The scans of x (n, length, channels), which is normalised, without the last norm and product -> y
void scans(const Shape& s, int64_t n, const float* epsilon, const float* const* all_weights, const float* x,
           float* room, float* y) {
    Weights w{all_weights};
    const int64_t rows = n * s.length(), group = s.group(), values = rows * s.channels;
    float *inner = room, *gate = inner + values, *u = gate + values, *low = u + values;
    float *weighed = low + GROUPS * rows * (s.rank + 2), *left = weighed + n * s.channels;
    affinity(s, n, all_weights, x, left, weighed);
    Product products[2 * GROUPS];
    for (int64_t i = 0; i < 2 * GROUPS; i++) {  // group by group: a thread has both halves of what it goes on with
        const int64_t g = i / 2, half = i % 2;
        products[i] = {x + g * group, w.group(IN)[g] + half * group, (half ? gate : inner) + g * rows * group};
    }
    multiply({rows, group, group, s.channels, 2 * group, 1, group}, products, 2 * GROUPS);
    Weights bias{all_weights};
    convolve_tokens({GROUPS, n, s.height, s.width, group}, SILU, inner, w.group(CONV), bias.group(CONV_BIAS), nullptr, u);
    for (int64_t g = 0; g < GROUPS; g++)
        products[g] = {u + g * rows * group, w.group(LOW)[g], low + g * rows * (s.rank + 2)};
    multiply({rows, group, s.rank + 2, group, 1, group, s.rank + 2}, products, GROUPS);
    Weights decay{all_weights}, skip{all_weights};
    scan_of_products({n, s.height, s.width, group, s.rank}, u, low, w.group(STEP), bias.group(STEP_BIAS),
                     decay.group(A_LOG), skip.group(D), inner);
    normalise(GROUPS, rows, group, epsilon[OUT_EPSILON], inner, w.group(OUT_NORM), bias.group(OUT_NORM_BIAS), gate,
              inner);
    for (int64_t g = 0; g < GROUPS; g++)
        products[g] = {inner + g * rows * group, w.group(OUT)[g],     y + g * group, nullptr,
                       x + g * group,            weighed + g * group, nullptr};
    multiply({rows, group, group, group, group, 1, s.channels, s.length()}, products, GROUPS);
}

// How many values the MLP needs beside its normalised tokens
int64_t mlp_room(const Shape& s, int64_t n) {
    if (!s.bands()) return n * s.length() * s.wide();
    const int64_t of_a_band = s.width * (3 * s.hidden + s.wide());
    return packed_size(s.into_mlp(1)) + packed_size(s.out_of_mlp(1)) + 9 * s.hidden + n * s.bands() * of_a_band;
}

// The MLP of normalised tokens, added to y: of each band three rows of what is convolved are there at a time, panel by
// panel of its channels, (width, channels of the panel) each, so that a row is convolved while it is in the next cache
void mlp_in_bands(const Shape& s, int64_t n, const float* const* w, const float* normal, float* room, float* y) {
    ProductShape in = s.into_mlp(s.width);
    const ProductShape out = s.out_of_mlp(s.width);
    float *packed_in = room, *packed_out = packed_in + packed_size(in), *taps = packed_out + packed_size(out);
    float* of_bands = taps + 9 * s.hidden;
    pack_weights(in, w[MLP1], packed_in);
    pack_weights(out, w[MLP2], packed_out);
    const int64_t bands = s.bands(), line = s.width * s.hidden, row_size = s.width * s.channels, most = panel_columns(in);
    const auto columns_of = [&](int64_t first) { return std::min(most, s.hidden - first); };
    for (int64_t first = 0; first < s.hidden; first += most)
        by_tap(columns_of(first), w[MLP_CONV] + first * 9, taps + first * 9);
#pragma omp parallel for schedule(static) firstprivate(in)
    for (int64_t item = 0; item < n * bands; item++) {
        const int64_t band = item % bands, begin = s.height * band / bands, end = s.height * (band + 1) / bands;
        const int64_t image = item / bands * s.height * row_size;
        float *ring = of_bands + item * (3 * line + s.width * s.wide()), *convolved = ring + 3 * line;
        // of a row the panel that begins with a channel
        const auto panel_of = [&](int64_t row, int64_t first) {
            return row < 0 || row >= s.height ? nullptr : ring + row % 3 * line + first * s.width;
        };
        const auto prepare = [&](int64_t row, int64_t first) {
            if (row < 0 || row >= s.height) return;
            in.y_row = columns_of(first);
            multiply_packed_panel(in, {normal + image + row * row_size, packed_in, panel_of(row, first), w[MLP1_BIAS]},
                                  first);
        };
        for (int64_t first = 0; first < s.hidden; first += most) {
            prepare(begin - 1, first);
            prepare(begin, first);
        }
        for (int64_t row = begin; row < end; row++) {
            for (int64_t first = 0; first < s.hidden; first += most) {
                prepare(row + 1, first);
                const float* const around[3] = {panel_of(row - 1, first), panel_of(row, first), panel_of(row + 1, first)};
                convolve_tokens_row(s.width, columns_of(first), RATIONAL_GELU, around, taps + first * 9,
                                    w[MLP_CONV_BIAS] + first, convolved + first, s.wide());
            }
            float* to = y + image + row * row_size;
            multiply_packed(out, {convolved, packed_out, to, w[MLP2_BIAS], nullptr, nullptr, to});
        }
    }
}

// The inside of the MLP, (n, length, channels) -> (n, length, wide): a thread makes some channels and convolves them
// at once, while it has them in its cache
void inside_of_mlp(const Shape& s, int64_t n, const float* const* w, const float* normal, float* to) {
    const ProductShape whole = s.into_mlp(n * s.length());
    const int64_t most = panel_columns(whole);
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < s.hidden; first += most) {
        const int64_t count = s.hidden - first < most ? s.hidden - first : most, line = s.width * count;
        float *taps = scratch.of((9 + whole.rows) * most), *hidden = taps + 9 * most;
        ProductShape in = whole;
        in.y_row = count;
        multiply_panel(in, {normal, w[MLP1], hidden, w[MLP1_BIAS]}, first);
        by_tap(count, w[MLP_CONV] + first * 9, taps);
        for (int64_t i = 0; i < n * s.height; i++) {
            const int64_t row = i % s.height;
            const float* own = hidden + i * line;
            const float* const around[3] = {row > 0 ? own - line : nullptr, own,
                                            row + 1 < s.height ? own + line : nullptr};
            convolve_tokens_row(s.width, count, RATIONAL_GELU, around, taps, w[MLP_CONV_BIAS] + first,
                                to + i * s.width * s.wide() + first, s.wide());
        }
    }
}

// y + mlp(norm(y)) -> y
void mlp(const Shape& s, int64_t n, const float* epsilon, const float* const* w, float* room, float* y) {
    const int64_t rows = n * s.length();
    float *normal = room, *inside = normal + rows * s.channels;
    normalise(1, rows, s.channels, epsilon[NORM2_EPSILON], y, w + NORM2, w + NORM2_BIAS, nullptr, normal);
    if (w[MLP_CONV] && s.bands()) return mlp_in_bands(s, n, w, normal, inside, y);
    if (w[MLP_CONV]) {
        inside_of_mlp(s, n, w, normal, inside);
    } else {
        const Product in{normal, w[MLP1], inside, w[MLP1_BIAS]};
        multiply(s.into_mlp(rows), &in, 1);
        for (float* token = inside; token < inside + rows * s.wide(); token += s.wide())
            for (int64_t i = 0; i < s.hidden; i += LANES) {
                const int count = lanes(s.hidden - i);
                vec value[1] = {load(token + i, count)};
                rational_gelu(value);
                store(token + i, value[0], count);
            }
    }
    const Product out{inside, w[MLP2], y, w[MLP2_BIAS], nullptr, nullptr, y};
    multiply(s.out_of_mlp(rows), &out, 1);
}

int64_t room_of(const Shape& s) {
    const int64_t n = s.together(), rows = n * s.length();
    const int64_t scanned = rows * (5 * s.channels + GROUPS * (s.rank + 2)) + n * (2 * s.channels + s.reduced);
    const int64_t mixed = rows * s.channels + mlp_room(s, n);
    return scanned > mixed ? scanned : mixed;
}

// One block: x -> y, which may be x
void block(const Shape& s, const float* epsilon, const float* const* w, const float* x, float* room, float* y) {
    for (int64_t image = 0; image < s.n; image += s.together()) {
        const int64_t n = image + s.together() < s.n ? s.together() : s.n - image;
        const int64_t rows = n * s.length(), values = rows * s.channels;
        const float* from = x + image * s.length() * s.channels;
        float *to = y + image * s.length() * s.channels, *normal = room, *scanned = room + values;
        normalise(1, rows, s.channels, epsilon[NORM_EPSILON], from, w + NORM, w + NORM_BIAS, nullptr, normal);
        scans(s, n, epsilon, w, normal, scanned + values, scanned);
        normalise(1, rows, s.channels, epsilon[NORM_EPSILON], scanned, w + NORM, w + NORM_BIAS, nullptr, scanned);
        if (w[AFTER]) {
            product(rows, s.channels, s.channels, scanned, w[PROJ], w[PROJ_BIAS], normal);
            normalise(1, rows, s.channels, epsilon[AFTER_EPSILON], normal, w + AFTER, w + AFTER_BIAS, nullptr, normal);
            for (int64_t i = 0; i < values; i++) to[i] = from[i] + normal[i];
        } else {
            product(rows, s.channels, s.channels, scanned, w[PROJ], w[PROJ_BIAS], to, from);
        }
        mlp(s, n, epsilon, w, room, to);
    }
}

// sizes: N, channels, H, W, classes, the number of stages, and of each: rank of the steps, channels inside of the
// affinity and of the MLP, blocks, the number of convolutions of the way into it, and of each of these kernel, stride
// and channels
class Stages {
  public:
    explicit Stages(const int64_t* sizes)
        : left(sizes[5]), own(sizes + 6), n(sizes[0]), channels(sizes[1]), height(sizes[2]), width(sizes[3]) {}
    std::vector<int64_t> way;  // what embed wants
    Shape shape{};
    int64_t before = 0;  // values of an image that comes in
    // The next stage; false after the last
    bool next() {
        if (left == 0) return false;
        const int64_t count = own[4], *convolutions = own + 5;
        before = channels * height * width;
        way = {n, channels, height, width, shape.n == 0, count};
        way.insert(way.end(), convolutions, convolutions + 3 * count);
        for (const int64_t* c = convolutions; c < convolutions + 3 * count; c += 3) {
            height = (height - 1) / c[1] + 1, width = (width - 1) / c[1] + 1;
            channels = c[2];
        }
        shape = {n, height, width, channels, own[0], own[1], own[2], own[3]};
        own = convolutions + 3 * count;
        left--;
        return true;
    }

  private:
    int64_t left;
    const int64_t* own;
    int64_t n, channels, height, width;
};

// A stage of images that pass through it together
struct Stage {
    std::vector<int64_t> way;
    Shape shape;
    bool last;
    Stage(const Stages& of, int64_t n, int64_t threads, bool last) : way(of.way), shape(of.shape), last(last) {
        way[0] = shape.n = n;
        shape.threads = threads;
    }
    int64_t room() const { return std::max(embedding_room(way.data()), room_of(shape)); }
    // packed: the weights of the way into it. All tokens but the last are normalised.
    void pass(const float* epsilon, const float* const* weights, const float* packed, const float* x, float* room,
              float* tokens) const {
        embed(way.data(), epsilon[0], epsilon[1], weights, packed, x, room, tokens);
        const float* const* own = weights + embedding_weights(way.data());
        for (int64_t j = 0; j < shape.blocks; j++, own += OF_A_BLOCK)
            block(shape, epsilon + BLOCK_EPSILONS, own, tokens, room, tokens);
        if (!last)
            normalise(1, shape.n * shape.length(), shape.channels, epsilon[STAGE_EPSILON], tokens, own, own + 1, nullptr,
                      tokens);
    }
};

// The class block has one token of each image
Shape of_class(const Shape& last) {
    return {last.n, 1, 1, last.channels, last.rank, last.reduced, last.hidden, 1};
}

// The mean of an image's tokens passes through a block, a norm and one head or two, whose mean is the result
void logits_of(const Shape& last, int64_t classes, const float* epsilon, const float* const* norm,
               const float* const* w, const float* x, float* room, float* logits) {
    float *token = room, *second = token + last.n * last.channels, *rest = second + last.n * classes;
    mean(last, last.n, x, token);
    block(of_class(last), epsilon + BLOCK_EPSILONS, w, token, rest, token);
    normalise(1, last.n, last.channels, epsilon[STAGE_EPSILON], token, norm, norm + 1, nullptr, token);
    w += OF_A_BLOCK;
    product(last.n, last.channels, classes, token, w[0], w[1], logits);
    if (!w[2]) return;
    product(last.n, last.channels, classes, token, w[2], w[3], second);
    for (int64_t i = 0; i < last.n * classes; i++) logits[i] = (logits[i] + second[i]) / 2;
}

}  // namespace

// The images of a stage: the first `shared` are taken by threads that are by themselves, `one` at a time
struct Split {
    int64_t threads, alone, shared;
    Stage one, rest;
    Split(const Stages& of, bool last)
        : threads(of.shape.threads), alone(of.shape.alone()),
          shared(alone ? of.shape.n / (alone * threads) * alone * threads : 0), one(of, alone, 1, last),
          rest(of, of.shape.n - shared, threads, last) {}
};

// How many values of memory group_mamba_forward needs: many images need some for each thread
extern "C" int64_t group_mamba_room(const int64_t* sizes) {
    Stages stages(sizes);
    int64_t most = 0;
    while (stages.next()) {
        const Split split(stages, false);
        const int64_t own = std::max(split.shared ? split.threads * split.one.room() : 0, split.rest.room());
        most = std::max(most, embedding_packed(stages.way.data()) + own);
    }
    const Shape& last = stages.shape;
    return std::max(most, last.n * (last.channels + sizes[4]) + room_of(of_class(last)));
}

// x (N, C, H, W) -> the tokens of each stage, all but the last normalised, and unless `logits` is null (N, classes).
// weights: of each stage those of the way into it, of its blocks and of its norm; of_head: of the class block, and weight
// and bias of the two heads, null where there is one. Null are in blocks the norm `after`, in the class block the MLP's
// convolution. epsilons: of batch norm, of the way into a stage, of blocks, of the norm after a stage.
extern "C" void group_mamba_forward(const int64_t* sizes, const float* epsilon, const float* const* weights,
                                    const float* const* of_head, const float* x, float* room, float* const* tokens,
                                    float* logits) {
    Stages stages(sizes);
    const Shape& s = stages.shape;
    const float* const* norm = nullptr;
    for (int64_t i = 0; stages.next(); i++) {
        const Split split(stages, i + 1 == sizes[5]);
        pack_embedding(stages.way.data(), weights, room);
        float* const free = room + embedding_packed(stages.way.data());
        const auto pass = [&](const Stage& stage, int64_t image, float* own) {
            stage.pass(epsilon, weights, room, x + image * stages.before, own,
                       tokens[i] + image * s.length() * s.channels);
        };
        if (split.shared) {
            const int64_t size = split.one.room();
#pragma omp parallel for schedule(monotonic : dynamic)  // Paddle's OpenMP knows no other
            for (int64_t image = 0; image < split.shared; image += split.alone)
                pass(split.one, image, free + omp_get_thread_num() * size);
        }
        if (split.shared < s.n) pass(split.rest, split.shared, free);
        norm = weights + embedding_weights(stages.way.data()) + s.blocks * OF_A_BLOCK;
        weights = norm + 2;
        x = tokens[i];
    }
    if (logits) logits_of(s, sizes[4], epsilon, norm, of_head, x, room, logits);
}
