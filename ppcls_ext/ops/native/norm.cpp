// Layer norm of tokens, several groups with weights of their own, and its product with SiLU of a gate.

#include "steps.h"

void normalise(int64_t groups, int64_t rows, int64_t channels, float epsilon, const float* x,
               const float* const* weight, const float* const* bias, const float* gate, float* y) {
#pragma omp parallel for schedule(static) if (groups * rows * channels >= 16384)  // threads take 10 us to wake
    for (int64_t row = 0; row < groups * rows; row++) {
        const float* from = x + row * channels;
        const float *w = weight[row / rows], *b = bias[row / rows];
        vec sums = {}, squares = {};
        for (int64_t c = 0; c < channels; c += LANES) sums += load(from + c, lanes(channels - c));
        const float mean = sum(sums) / channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            const int count = lanes(channels - c);
            const vec difference = load(from + c, count) - first(all(mean), count);
            squares += difference * difference;
        }
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) / channels + epsilon);
        for (int64_t c = 0; c < channels; c += LANES) {
            const int count = lanes(channels - c);
            vec result = (load(from + c, count) - mean) * scale * load(w + c, count) + load(b + c, count);
            if (gate) {
                const vec z = load(gate + row * channels + c, count);
                result *= z * sigmoid(z);
            }
            store(y + row * channels + c, result, count);
        }
    }
}

// sizes: rows, channels. x, y (rows, channels), weight, bias (channels,)
extern "C" void norm_forward(const int64_t* sizes, float epsilon, const float* x, const float* weight,
                             const float* bias, float* y) {
    normalise(1, sizes[0], sizes[1], epsilon, x, &weight, &bias, nullptr, y);
}
