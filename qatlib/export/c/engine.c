/* Integer layers: see engine.h. Shifts are written so that no negative number is ever shifted (C99 leaves that open). */
#include "engine.h"

#include <stddef.h>
#include <string.h>

#include "network.h"

static int32_t plane[NETWORK_PLANE];  /* the sums of one output channel */
static int8_t kernel[NETWORK_KERNEL]; /* the unpacked weights of one output channel */

/* floor(v / 2^n) */
static int32_t floor_shift(int32_t v, int n)
{
    return v < 0 ? ~(~v >> n) : v >> n;
}

static int32_t clamp(int32_t v)
{
    return v < -128 ? -128 : v > 127 ? 127 : v;
}

/* A sum to an 8-bit code: shift, activation, rounding half up, saturation. ABS first drops what lies below 1/128 of a code. */
static int8_t narrow(int32_t sum, int n, int activation)
{
    if (activation == ABS) {
        if (n > 7) {
            sum = floor_shift(sum, n - 7);
            n = 7;
        }
        sum = sum < 0 ? -sum : sum;
    }
    if (n > 0)
        sum = floor_shift(sum + ((int32_t)1 << (n - 1)), n);
    else
        sum = clamp(sum) * ((int32_t)1 << -n);
    if (activation == RELU && sum < 0)
        return 0;
    return (int8_t)clamp(sum);
}

/* `count` codes from number `first` on, each a two's complement field of `bits` bits. */
static void unpack(const uint8_t *packed, int bits, int32_t first, int32_t count, int8_t *codes)
{
    int32_t i;

    if (bits == 8) {
        memcpy(codes, packed + first, (size_t)count);
        return;
    }
    for (i = 0; i < count; i++) {
        int32_t place = (first + i) * bits;
        int field = packed[place / 8] >> (place % 8) & ((1 << bits) - 1);
        codes[i] = (int8_t)(field >= 1 << (bits - 1) ? field - (1 << bits) : field);
    }
}

static int32_t start(const layer_t *l, int out)
{
    return l->bias ? (int32_t)l->bias[out] * 128 : 0;
}

/* First output `o` whose input place o * stride + offset is not negative. */
static int first_inside(int offset, int stride)
{
    return offset >= 0 ? 0 : (-offset + stride - 1) / stride;
}

/* One past the last output whose input place is below `size`. */
static int end_inside(int offset, int stride, int size, int outputs)
{
    int end = size - 1 - offset < 0 ? 0 : (size - 1 - offset) / stride + 1;
    return end < outputs ? end : outputs;
}

/* Adds weight * input for one input channel and one place of the kernel. An ordinary layer goes through its outputs and steps through
 * the input with the stride; a transposed one goes through its inputs and steps through the output. */
static void add_place(const layer_t *l, const int8_t *x, int32_t weight, int off_h, int off_w)
{
    int rows = l->transposed ? l->in_h : l->out_h, columns = l->transposed ? l->in_w : l->out_w;
    int limit_h = l->transposed ? l->out_h : l->in_h, limit_w = l->transposed ? l->out_w : l->in_w;
    int row = first_inside(off_h, l->stride_h), end_row = end_inside(off_h, l->stride_h, limit_h, rows);
    int first = first_inside(off_w, l->stride_w), end = end_inside(off_w, l->stride_w, limit_w, columns);
    int i;

    for (; row < end_row; row++) {
        int other = row * l->stride_h + off_h;
        if (l->transposed) {
            const int8_t *from = x + row * l->in_w;
            int32_t *to = plane + other * l->out_w;
            for (i = first; i < end; i++)
                to[i * l->stride_w + off_w] += weight * from[i];
        } else if (l->stride_w == 1) {
            int32_t *to = plane + row * l->out_w;
            const int8_t *from = x + other * l->in_w + off_w;
            for (i = first; i < end; i++)
                to[i] += weight * from[i];
        } else {
            int32_t *to = plane + row * l->out_w;
            const int8_t *from = x + other * l->in_w;
            for (i = first; i < end; i++)
                to[i] += weight * from[i * l->stride_w + off_w];
        }
    }
}

/* All sums of output channel `out` into `plane`. */
static void accumulate(const layer_t *l, const int8_t *x, int out)
{
    int ins = l->in_channels / l->groups, outs = l->out_channels / l->groups, places = l->kernel_h * l->kernel_w;
    int group = out / outs, in, ky, kx;
    int32_t i, size = (int32_t)l->out_h * l->out_w, bias = start(l, out);

    for (i = 0; i < size; i++)
        plane[i] = bias;
    if (!l->transposed)
        unpack(l->weight, l->bits, (int32_t)out * ins * places, (int32_t)ins * places, kernel);
    else
        for (in = 0; in < ins; in++)
            unpack(l->weight, l->bits, ((int32_t)(group * ins + in) * outs + out % outs) * places, places, kernel + in * places);
    for (in = 0; in < ins; in++) {
        const int8_t *from = x + (int32_t)(group * ins + in) * l->in_h * l->in_w;
        for (ky = 0; ky < l->kernel_h; ky++)
            for (kx = 0; kx < l->kernel_w; kx++) {
                int32_t weight = kernel[in * places + ky * l->kernel_w + kx];
                if (weight)
                    add_place(l, from, weight, ky * l->dilation_h - l->pad_h, kx * l->dilation_w - l->pad_w);
            }
    }
}

void conv(const layer_t *l, const int8_t *x, int8_t *y)
{
    int32_t i, size = (int32_t)l->out_h * l->out_w;
    int out;

    for (out = 0; out < l->out_channels; out++, y += size) {
        accumulate(l, x, out);
        for (i = 0; i < size; i++)
            y[i] = narrow(plane[i], l->shift, l->activation);
    }
}

void conv_wide(const layer_t *l, const int8_t *x, int32_t *y)
{
    int32_t size = (int32_t)l->out_h * l->out_w;
    int out;

    for (out = 0; out < l->out_channels; out++, y += size) {
        accumulate(l, x, out);
        memcpy(y, plane, (size_t)size * sizeof *y);
    }
}

static int32_t dot(const layer_t *l, const int8_t *x, int out)
{
    int32_t sum = start(l, out);
    int i;

    for (i = 0; i < l->in_channels; i++)
        sum += (int32_t)kernel[i] * x[i];
    return sum;
}

void linear(const layer_t *l, const int8_t *x, int8_t *y)
{
    int out, row;

    for (out = 0; out < l->out_channels; out++) {
        unpack(l->weight, l->bits, (int32_t)out * l->in_channels, l->in_channels, kernel);
        for (row = 0; row < l->in_h; row++)
            y[row * l->out_channels + out] = narrow(dot(l, x + row * l->in_channels, out), l->shift, l->activation);
    }
}

void linear_wide(const layer_t *l, const int8_t *x, int32_t *y)
{
    int out, row;

    for (out = 0; out < l->out_channels; out++) {
        unpack(l->weight, l->bits, (int32_t)out * l->in_channels, l->in_channels, kernel);
        for (row = 0; row < l->in_h; row++)
            y[row * l->out_channels + out] = dot(l, x + row * l->in_channels, out);
    }
}

/* The mean as a code. C's division truncates toward zero, as the chip does. */
static int32_t mean(int32_t sum, int32_t count, int kind)
{
    int32_t low = sum / count - (sum % count < 0), rest = sum - low * count;

    if (kind == AVG)
        return sum / count;
    return low + (2 * rest > count || (2 * rest == count && low % 2 != 0));
}

void pool(const pool_t *p, const int8_t *x, int8_t *y)
{
    int channel, row, column, i, j;

    for (channel = 0; channel < p->channels; channel++, x += p->in_h * p->in_w)
        for (row = 0; row < p->out_h; row++)
            for (column = 0; column < p->out_w; column++) {
                const int8_t *corner = x + row * p->stride_h * p->in_w + column * p->stride_w;
                int32_t best = -128, sum = 0;
                for (i = 0; i < p->size_h; i++)
                    for (j = 0; j < p->size_w; j++) {
                        int32_t v = corner[i * p->dilation_h * p->in_w + j * p->dilation_w];
                        best = v > best ? v : best;
                        sum += v;
                    }
                *y++ = (int8_t)(p->kind == MAX ? best : mean(sum, p->size_h * p->size_w, p->kind));
            }
}

void eltwise(const int8_t *const *operands, int count, int sign, int32_t size, int8_t *y)
{
    int32_t i;
    int k;

    for (i = 0; i < size; i++) {
        int32_t sum = operands[0][i];
        for (k = 1; k < count; k++)
            sum += sign * operands[k][i];
        y[i] = (int8_t)clamp(sum);
    }
}
