/* Integer layers as the MAX78000 computes them. Codes are int8_t, sums int32_t; nothing is a float and nothing is allocated.
 * Between layers a tensor lies row by row, pixel by pixel, all channels of a pixel side by side (H, W, C); a signal has one row. */
#ifndef ENGINE_H
#define ENGINE_H

#include <stdint.h>

#include "network.h"

/* ENGINE_PIXELS: output pixels whose inputs are gathered at the same time, a multiple of 4. With the DSP extension weights are
 * unpacked in registers, for four pixels; elsewhere once for all of them, so more are faster and need more RAM. */
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP
#define ENGINE_DSP 1
#define ENGINE_PIXELS 4
#define ENGINE_LANES 1
#else
#define ENGINE_DSP 0
#ifndef ENGINE_PIXELS
#define ENGINE_PIXELS 64
#endif
#define ENGINE_LANES NETWORK_PATCH
#endif
#define ENGINE_RAM (2 * ENGINE_PIXELS * NETWORK_PATCH + 4 * ENGINE_LANES + 4 * ENGINE_PIXELS) /* bytes */

enum { NONE, RELU, ABS };     /* activation */
enum { MAX, AVG, AVG_ROUND }; /* pooling; AVG truncates toward zero, AVG_ROUND rounds half to even */

/* A convolution. Others become one: a linear layer has one pixel a row; a transposed convolution is several ordinary ones, one for
 * each place that an output pixel can have between the strides. */
typedef struct {
    const void *weight; /* see "Weights" in engine.c */
    const int8_t *bias; /* codes on the weights' grid, or a null pointer */
    int in_h, in_w, in_step_h, in_step_w, in_step_c;       /* steps: how far apart neighbours lie in memory */
    int out_h, out_w, out_step_h, out_step_w, out_step_c;
    int in_channels, out_channels, groups; /* channels of one group */
    int16_t bits, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    int16_t shift; /* y = floor(sum / 2^shift + 1/2); negative: times 2^-shift */
    int16_t activation;
    int16_t first_h, first_w; /* input place of the first weight for the first output: minus the padding */
} layer_t;

typedef struct {
    int kind, channels, in_w, out_h, out_w;
    int size_h, size_w, stride_h, stride_w, dilation_h, dilation_w;
} pool_t;

typedef struct {
    int32_t count, read, write; /* how far apart neighbours lie in x and in y */
} loop_t;

/* Codes into y, or the sums themselves into wide_y; the other one is a null pointer. */
void conv(const layer_t *layer, const int8_t *x, int8_t *y, int32_t *wide_y);
/* One input and one output channel a group; its weights are int8_t (kernel, channel). */
void depthwise(const layer_t *layer, const int8_t *x, int8_t *y, int32_t *wide_y);
/* y may be x: a window is read before its result is written, and nothing behind it is needed later. */
void pool(const pool_t *pool, const int8_t *x, int8_t *y);
/* y = first + sign * (the others), saturated once at the end; y may be one of them. */
void eltwise(const int8_t *const *operands, int count, int sign, int32_t size, int8_t *y);
/* (places, channels) to (channels, places). */
void transpose(const int8_t *x, int32_t places, int32_t channels, int8_t *y);
/* y = x * 2^shift in nested loops, the innermost last; of x and wide_x one is a null pointer. */
void collect(const loop_t *loop, int depth, const int8_t *x, const int32_t *wide_x, int32_t *y, int shift);
/* The channels of x into pixels of `all` channels. */
void join(const int8_t *x, int32_t places, int32_t channels, int32_t all, int8_t *y);

#endif
