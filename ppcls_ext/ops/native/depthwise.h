// Depthwise convolution: its sizes, and its two ways.
#pragma once

#include "maps.h"

struct Depthwise : Maps {
    int64_t n, channels, multiplier;
};

// Of each way: x (N, C, H, W), weight (m C, taps), bias (m C) or null -> y (N, m C, H', W'), and the gradients of x,
// weight and bias, each of which may be null.

// A map at a time, neighbours in a row side by side in a vector: for large maps.
void rows_forward(const Depthwise& s, const float* x, const float* weight, const float* bias, float* y);
void rows_backward(const Depthwise& s, const float* x, const float* weight, const float* g, float* x_gradient,
                   float* weight_gradient, float* bias_gradient);

// A place at a time, channels side by side in a vector: for small maps.
bool lanes_pay(const Depthwise& s);
void lanes_forward(const Depthwise& s, const float* x, const float* weight, const float* bias, float* y);
void lanes_backward(const Depthwise& s, const float* x, const float* weight, const float* g, float* x_gradient,
                    float* weight_gradient, float* bias_gradient);
