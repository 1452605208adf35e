// The way into a stage of a network of tokens: convolutions, each but the last with batch norm (of the running
// statistics) and ReLU, the last with a bias and a layer norm.
//
// Maps lie with their channels side by side and a border of zeros as wide as the next convolution's padding: a row of
// its kernel then meets one run of values, and the convolution is a matrix product. Every sum is made by one thread in
// one order.

#include "steps.h"
#include "tiles.h"

namespace {

constexpr int64_t TOGETHER = 784;  // places of the result: so many images at once that weights are packed for them all
constexpr int CONV = 3;            // sizes of a convolution
constexpr int INNER_WEIGHTS = 5;   // tensors of a convolution with its batch norm
constexpr int LAST_WEIGHTS = 4;    // of the last with its layer norm

thread_local Scratch kept;

struct Conv {
    int64_t channels, height, width, kernel, stride, out_channels;
    int64_t padding() const { return kernel / 2; }
    int64_t out_height() const { return (height + 2 * padding() - kernel) / stride + 1; }
    int64_t out_width() const { return (width + 2 * padding() - kernel) / stride + 1; }
    int64_t line() const { return (width + 2 * padding()) * channels; }
    int64_t image() const { return (height + 2 * padding()) * line(); }  // with the border
    // The output channels come in panels of so many
    int64_t panel_channels() const { return panel_width(out_channels); }
    int64_t panels() const { return (out_channels + panel_channels() - 1) / panel_channels(); }
    int64_t inner() const { return kernel * kernel * channels; }
    int64_t packed() const { return panels() * panel_channels() * inner(); }
};

struct Chain {
    const int64_t* sizes;
    int64_t n() const { return sizes[0]; }
    bool maps() const { return sizes[4]; }
    int64_t count() const { return sizes[5]; }
    Conv conv(int64_t i) const {
        Conv result{sizes[1], sizes[2], sizes[3], 0, 0, 0};
        for (int64_t j = 0; j <= i; j++) {
            const int64_t* own = sizes + 6 + j * CONV;
            if (j > 0)
                result = {result.out_channels, result.out_height(), result.out_width(), 0, 0, 0};
            result.kernel = own[0], result.stride = own[1], result.out_channels = own[2];
        }
        return result;
    }
    int64_t places() const {
        const Conv last = conv(count() - 1);
        return last.out_height() * last.out_width();
    }
    int64_t together() const {
        const int64_t images = (TOGETHER + places() - 1) / places();
        return images < n() ? images : n();
    }
    // of one of the two buffers that the maps go back and forth between
    int64_t buffer() const {
        int64_t most = 0;
        for (int64_t i = 0; i < count(); i++) most = conv(i).image() > most ? conv(i).image() : most;
        return together() * most;
    }
    int64_t packed() const {
        int64_t result = 0;
        for (int64_t i = 0; i < count(); i++) result += conv(i).packed();
        return result;
    }
};

// Where the places of a result lie
struct Places {
    float* y;
    int64_t image, line;
};

// Inside of the border of `next`'s input; without a next one, tokens
Places inside(const Conv* next, const Conv& s, float* y) {
    if (!next) return {y, s.out_height() * s.out_width() * s.out_channels, s.out_width() * s.out_channels};
    return {y + next->padding() * (next->line() + next->channels), next->image(), next->line()};
}

// Zeros around n maps
void clear_border(const Conv& s, int64_t n, float* to) {
    const int64_t line = s.line(), sides = s.padding() * s.channels;
    for (int64_t i = 0; i < n; i++, to += s.image()) {
        std::memset(to, 0, s.padding() * line * sizeof(float));
        for (int64_t y = s.padding(); y < s.padding() + s.height; y++) {
            std::memset(to + y * line, 0, sides * sizeof(float));
            std::memset(to + (y + 1) * line - sides, 0, sides * sizeof(float));
        }
        std::memset(to + (s.padding() + s.height) * line, 0, s.padding() * line * sizeof(float));
    }
}

// n images -> inside of their border
void bring_in(const Conv& s, int64_t n, bool maps, const float* x, float* to) {
    clear_border(s, n, to);
    const Places places{to + s.padding() * (s.line() + s.channels), s.image(), s.line()};
    const int64_t plane = s.height * s.width;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n * s.height; row++) {
        const int64_t image = row / s.height, y = row % s.height;
        float* own = places.y + image * places.image + y * places.line;
        const float* from = x + image * plane * s.channels + y * s.width * (maps ? 1 : s.channels);
        if (!maps) {
            std::memcpy(own, from, s.width * s.channels * sizeof(float));
            continue;
        }
        for (int64_t c = 0; c < s.channels; c++)
            for (int64_t p = 0; p < s.width; p++) own[p * s.channels + c] = from[c * plane + p];
    }
}

// (out, in, k, k) -> of each panel (k, k, in, its channels), 0 beyond the last channel
void pack(const Conv& s, const float* weight, float* to) {
    const int64_t width = s.panel_channels(), taps = s.kernel * s.kernel, inner = s.inner();
#pragma omp parallel for schedule(static) if (s.packed() >= 65536)
    for (int64_t column = 0; column < s.panels() * width; column += LANES) {
        float* own = to + column / width * width * inner + column % width;
        for (int64_t first = 0; first < inner; first += LANES) {
            const int count = lanes(inner - first);
            vec block[LANES];
            for (int64_t i = 0; i < LANES; i++)
                block[i] = column + i < s.out_channels ? load(weight + (column + i) * inner + first, count) : vec{};
            transpose(block);
            for (int64_t i = 0; i < count; i++)
                store(own + ((first + i) % taps * s.channels + (first + i) / taps) * width, block[i]);
        }
    }
}

template <int VECTORS>
void rows(const Conv& s, int64_t first, int64_t end, int64_t column, const float* x, const float* panel,
          const float* scale, const float* shift, bool relu, const Places& places) {
    const Rows shape{s.kernel * s.channels, s.stride * s.channels, s.kernel, s.line()};
    for (int64_t row = first; row < end; row++) {
        const int64_t image = row / s.out_height(), y = row % s.out_height();
        float* to = places.y + image * places.image + y * places.line;
        all_tiles_to<VECTORS>(s.out_width(), shape, x + image * s.image() + y * s.stride * s.line(), panel, nullptr, 0,
                              [&](const float* sums, int64_t place, int64_t count) {
                                  for (int v = 0; v < VECTORS && column + v * LANES < s.out_channels; v++) {
                                      const int64_t c = column + v * LANES;
                                      const int valid = lanes(s.out_channels - c);
                                      const vec factor = scale ? load(scale + c, valid) : all(1);
                                      const vec added = load(shift + c, valid);
                                      for (int64_t p = 0; p < count; p++) {
                                          vec z = fused(load(sums + (p * VECTORS + v) * LANES), factor, added);
                                          if (relu) z = z < 0.0f ? vec{} : z;
                                          store(to + (place + p) * s.out_channels + c, z, valid);
                                      }
                                  }
                              });
    }
}

// x with its border -> relu(conv scale + shift) with packed weights; without a scale conv + shift
void convolve(const Conv& s, int64_t n, const float* x, const float* packed, const float* scale, const float* shift,
              const Places& places) {
    const int64_t width = s.panel_channels(), panels = s.panels();
    const int64_t lines = n * s.out_height(), chunks = chunks_of(lines * s.out_width(), panels, lines);
#pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < chunks * panels; item++) {
        const int64_t part = item / panels, column = item % panels * width;
        const int64_t first = lines * part / chunks, end = lines * (part + 1) / chunks;
        const float* panel = packed + column * s.inner();
        if (width == LANES)
            rows<1>(s, first, end, column, x, panel, scale, shift, scale != nullptr, places);
        else
            rows<2>(s, first, end, column, x, panel, scale, shift, scale != nullptr, places);
    }
}

}  // namespace

int64_t embedding_room(const int64_t* sizes) { return 2 * Chain{sizes}.buffer(); }

int64_t embedding_packed(const int64_t* sizes) { return Chain{sizes}.packed(); }

int64_t embedding_weights(const int64_t* sizes) { return (Chain{sizes}.count() - 1) * INNER_WEIGHTS + LAST_WEIGHTS; }

void pack_embedding(const int64_t* sizes, const float* const* weights, float* packed) {
    const Chain chain{sizes};
    for (int64_t i = 0; i < chain.count(); packed += chain.conv(i++).packed())
        pack(chain.conv(i), weights[i * INNER_WEIGHTS], packed);
}

void embed(const int64_t* sizes, float batch_epsilon, float epsilon, const float* const* weights, const float* packed,
           const float* x, float* room, float* y) {
    const Chain chain{sizes};
    const Conv start = chain.conv(0), last = chain.conv(chain.count() - 1);
    const float* const* ending = weights + (chain.count() - 1) * INNER_WEIGHTS;
    for (int64_t image = 0; image < chain.n(); image += chain.together()) {
        const int64_t n = image + chain.together() < chain.n() ? chain.together() : chain.n() - image;
        float *from = room, *to = from + chain.buffer();
        const float* own_packed = packed;
        bring_in(start, n, chain.maps(), x + image * start.channels * start.height * start.width, from);
        for (int64_t i = 0; i + 1 < chain.count(); i++) {
            const Conv own = chain.conv(i), next = chain.conv(i + 1);
            const float* const* given = weights + i * INNER_WEIGHTS;
            float *scale = kept.of(2 * own.out_channels), *shift = scale + own.out_channels;
            for (int64_t c = 0; c < own.out_channels; c++) {
                scale[c] = given[1][c] / __builtin_sqrtf(given[4][c] + batch_epsilon);
                shift[c] = __builtin_fmaf(-given[3][c], scale[c], given[2][c]);
            }
            clear_border(next, n, to);
            convolve(own, n, from, own_packed, scale, shift, inside(&next, own, to));
            own_packed += own.packed();
            float* free = from;
            from = to, to = free;
        }
        float* result = y + image * chain.places() * last.out_channels;
        convolve(last, n, from, own_packed, nullptr, ending[1], inside(nullptr, last, result));
        normalise(1, n * chain.places(), last.out_channels, epsilon, result, ending + 2, ending + 3, nullptr, result);
    }
}
