/* Integer layers as the MAX78000 computes them. Codes are int8_t, sums int32_t; nothing is a float and nothing is allocated.
 * Tensors lie channel by channel, row by row (C, H, W); a 1D signal has one row. */
#ifndef ENGINE_H
#define ENGINE_H

#include <stdint.h>

enum { NONE, RELU, ABS };     /* activation */
enum { MAX, AVG, AVG_ROUND }; /* pooling; AVG truncates toward zero, AVG_ROUND rounds half to even */

typedef struct {
    const uint8_t *weight; /* codes of `bits` bits, the first in the lowest bits; (out, in, kernel), transposed (in, out, kernel) */
    const int8_t *bias;    /* codes on the weights' grid, or a null pointer */
    int bits, transposed, groups;
    int in_channels, in_h, in_w;
    int out_channels, out_h, out_w;
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int shift; /* y = floor(sum / 2^shift + 1/2); negative: times 2^-shift */
    int activation;
} layer_t;

typedef struct {
    int kind, channels, in_h, in_w, out_h, out_w;
    int size_h, size_w, stride_h, stride_w, dilation_h, dilation_w;
} pool_t;

void conv(const layer_t *layer, const int8_t *x, int8_t *y);
void conv_wide(const layer_t *layer, const int8_t *x, int32_t *y);
/* Fully connected: in_h = rows, in_channels = values a row. */
void linear(const layer_t *layer, const int8_t *x, int8_t *y);
void linear_wide(const layer_t *layer, const int8_t *x, int32_t *y);
void pool(const pool_t *pool, const int8_t *x, int8_t *y);
/* y = first + sign * (the others), saturated once at the end. */
void eltwise(const int8_t *const *operands, int count, int sign, int32_t size, int8_t *y);

#endif
