/* Integer layers: see engine.h. Shifts are written so that no negative number is ever shifted (C99 leaves that open).
 *
 * Nearly all time goes into sums of products, so everything is laid out for an instruction that multiplies two pairs of 16-bit
 * numbers and adds both products to a sum: SMLAD of Arm's DSP extension, pmaddwd of x86, which compilers find in plain C.
 *
 * Patches. All inputs of an output pixel are gathered once into 16-bit lanes, number k = (place in the kernel, channel), and
 * serve all output channels. Places outside the input are zeros there, so no loop below knows of padding. k is filled up to
 * whole units of 16.
 *
 * Weights. Words of four bytes: output channels A and B, inputs k and k + 1, in the order A[k] B[k] A[k+1] B[k+1]. So one load
 * brings four weights, and a sign extension of every second byte makes the pair A[k] A[k+1], another one, rotated by a byte,
 * B[k] B[k+1]. With fewer than 8 bits a byte holds 8 / bits codes; the first is the highest. Shift and mask leave one of them at
 * the top of its byte, which is the code times 2^(8 - bits): sums carry that factor, and the final shift drops it. A unit takes
 * `bits` words; code i of word m belongs to inputs 2 * (i * bits + m) and the next. An odd last channel has a partner of zeros. */
#include "engine.h"

#include <stddef.h>
#include <string.h>

#define UNIT 16 /* inputs that the innermost loop takes at once */

/* The same loops compiled for several kinds of x86, chosen when the program starts, as inference libraries do. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__OPTIMIZE__) && __GNUC__ >= 12 && !defined(__SANITIZE_ADDRESS__)
#define EVERY_X86 __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define EVERY_X86
#endif

static int32_t place[ENGINE_PIXELS]; /* where the results of a pixel belong */

/* floor(v / 2^n) */
static int32_t floor_shift(int32_t v, int n)
{
    return v < 0 ? ~(~v >> n) : v >> n;
}

static inline int32_t clamp(int32_t v, int32_t low)
{
    return v < low ? low : v > 127 ? 127 : v;
}

/* `low` is a constant for the compiler, which then knows an instruction for the clamp. */
static inline void round_and_clamp(int32_t *v, int n, const int32_t low)
{
    int i;

    if (n > 0)
        for (i = 0; i < 8; i++)
            v[i] = clamp(floor_shift(v[i] + ((int32_t)1 << (n - 1)), n), low);
    else
        for (i = 0; i < 8; i++)
            v[i] = clamp(clamp(v[i], -128) * ((int32_t)1 << -n), low);
}

/* Eight sums to 8-bit codes: shift, rounding half up, activation, saturation. ABS comes last, and makes 127 of -128. */
EVERY_X86 static void narrow(int32_t *v, int n, int activation)
{
    int i;

    if (activation == RELU)
        round_and_clamp(v, n, 0);
    else
        round_and_clamp(v, n, -128);
    if (activation == ABS)
        for (i = 0; i < 8; i++)
            v[i] = clamp(v[i] < 0 ? -v[i] : v[i], 0);
}

/* Where a sum begins: a bias code is 128 times the last bit of a sum, and sums carry 2^(8 - bits). */
static int32_t start(const layer_t *l, int channel)
{
    return l->bias ? l->bias[channel] * ((int32_t)1 << (15 - l->bits)) : 0;
}

#if ENGINE_DSP
/* ---- The DSP extension. Units of the four patches lie in turn, so that one pointer reaches all four of them. ---- */
#include <arm_acle.h>

#define ROW UNIT             /* from a patch to the next one */
#define NEXT_UNIT (4 * UNIT) /* from a unit of a patch to its next one */

static union {
    int16_t lane[4 * NETWORK_PATCH];
    uint32_t pair[2 * NETWORK_PATCH];
} patch;

/* Sign-extended bytes 1 and 3; arm_acle.h has no intrinsic with the rotation that the instruction can do as well. */
static inline int16x2_t odd_bytes(uint32_t word)
{
#if defined(__GNUC__) && defined(__arm__)
    int16x2_t pair;

    __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    return pair;
#else
    return __sxtb16((int8x4_t)(word >> 8));
#endif
}

/* Word m of a unit's weights, code i of its bytes, against the patches: at 8 bits 15 instructions for the 16 products of four. */
#define STEP(n)                                                                                   \
    {                                                                                             \
        const int m = (n) / (8 / bits), i = (n) % (8 / bits), k = i * bits + m;                   \
        uint32_t word = bits == 8 ? w[m] : w[m] << (i * bits) & mask;                             \
        int16x2_t a = __sxtb16((int8x4_t)word), b = odd_bytes(word);                              \
        a0 = __smlad(a, (int16x2_t)x[k], a0), b0 = __smlad(b, (int16x2_t)x[k], b0);               \
        if (patches == 4) {                                                                       \
            a1 = __smlad(a, (int16x2_t)x[k + 8], a1), b1 = __smlad(b, (int16x2_t)x[k + 8], b1);   \
            a2 = __smlad(a, (int16x2_t)x[k + 16], a2), b2 = __smlad(b, (int16x2_t)x[k + 16], b2); \
            a3 = __smlad(a, (int16x2_t)x[k + 24], a3), b3 = __smlad(b, (int16x2_t)x[k + 24], b3); \
        }                                                                                         \
    }

/* The sums of two output channels, begun with a0 and b0, to sums[0..3] and [4..7]. `bits` and `patches` are constants. */
__attribute__((always_inline)) static inline void multiply_units(const int bits, const int patches, const uint32_t *w, int units,
                                                                 int32_t a0, int32_t b0, int32_t *sums)
{
    const uint32_t mask = ((255u << (8 - bits)) & 255u) * 0x01010101u, *x = patch.pair, *end = w + units * bits;
    int32_t a1 = a0, a2 = a0, a3 = a0, b1 = b0, b2 = b0, b3 = b0;

    for (; w != end; w += bits, x += 2 * UNIT) {
        STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
    }
    sums[0] = a0, sums[1] = a1, sums[2] = a2, sums[3] = a3, sums[4] = b0, sums[5] = b1, sums[6] = b2, sums[7] = b3;
}

/* What the network does not need is not in the program. */
#define USE(width, patches)                                                                                    \
    if ((NETWORK_BITS & (width)) && l->bits == (width) && (l->out_h * l->out_w == 1 ? 1 : 4) == (patches))       \
        multiply_units(width, patches, w, units, a, b, sums);

/* Not inlined, so that the loop has all registers. GCC also has to be kept from moving loads up: see the Makefile. */
__attribute__((noinline)) static void multiply(const layer_t *l, const uint32_t *w, int units, int first, int32_t a, int32_t b,
                                               int32_t *sums)
{
    (void)first;
    USE(8, 4) USE(4, 4) USE(2, 4) USE(1, 4)
#if NETWORK_SINGLE
    USE(8, 1) USE(4, 1) USE(2, 1) USE(1, 1)
#endif
}

#define unpack(l, w, units) ((void)0) /* multiply does it in registers */

/* Four bytes to four lanes. */
static inline void widen_four(const int8_t *x, int16_t *lane)
{
    uint32_t word, even, odd;

    memcpy(&word, x, 4);
    even = (uint32_t)__sxtb16((int8x4_t)word), odd = (uint32_t)odd_bytes(word);
    word = (even & 0xffffu) | odd << 16;
    odd = even >> 16 | (odd & 0xffff0000u);
    memcpy(lane, &word, 4);
    memcpy(lane + 2, &odd, 4);
}

#else
/* ---- Plain C. Patches lie one after the other; two channels' weights are unpacked once for all patches. ---- */
#define ROW NETWORK_PATCH
#define NEXT_UNIT UNIT

static struct {
    int16_t lane[ENGINE_PIXELS * NETWORK_PATCH];
} patch;
static int16_t lane_a[ENGINE_LANES], lane_b[ENGINE_LANES];

static int16_t signed_byte(uint32_t word)
{
    return (int16_t)((int)((word & 255u) ^ 128u) - 128);
}

/* `bits` is a constant for the compiler. */
static inline void unpack_bits(const int bits, const uint32_t *w, int units)
{
    const uint32_t mask = ((255u << (8 - bits)) & 255u) * 0x01010101u;
    int16_t *a = lane_a, *b = lane_b;
    int unit, i, m;

    for (unit = 0; unit < units; unit++, w += bits)
        for (i = 0; i < 8 / bits; i++)
            for (m = 0; m < bits; m++, a += 2, b += 2) {
                uint32_t word = w[m] << (i * bits) & mask;
                a[0] = signed_byte(word), b[0] = signed_byte(word >> 8);
                a[1] = signed_byte(word >> 16), b[1] = signed_byte(word >> 24);
            }
}

EVERY_X86 static void unpack(const layer_t *l, const uint32_t *w, int units)
{
    if (l->bits == 8)
        unpack_bits(8, w, units);
    else if (l->bits == 4)
        unpack_bits(4, w, units);
    else if (l->bits == 2)
        unpack_bits(2, w, units);
    else
        unpack_bits(1, w, units);
}

/* The sums of two output channels for the four patches from number `first` on, begun with `a` and `b`, to sums[0..3] and [4..7]. */
EVERY_X86 static void multiply(const layer_t *l, const uint32_t *w, int units, int first, int32_t a, int32_t b, int32_t *sums)
{
    const int16_t *x0 = patch.lane + first * ROW, *x1 = x0 + ROW, *x2 = x1 + ROW, *x3 = x2 + ROW;
    int32_t a0 = a, a1 = a, a2 = a, a3 = a, b0 = b, b1 = b, b2 = b, b3 = b;
    int k, end = units * UNIT;

    (void)l, (void)w;
    for (k = 0; k < end; k++) {
        int wa = lane_a[k], wb = lane_b[k];
        a0 += wa * x0[k], a1 += wa * x1[k], a2 += wa * x2[k], a3 += wa * x3[k];
        b0 += wb * x0[k], b1 += wb * x1[k], b2 += wb * x2[k], b3 += wb * x3[k];
    }
    sums[0] = a0, sums[1] = a1, sums[2] = a2, sums[3] = a3, sums[4] = b0, sums[5] = b1, sums[6] = b2, sums[7] = b3;
}

static inline void widen_four(const int8_t *x, int16_t *lane)
{
    lane[0] = x[0], lane[1] = x[1], lane[2] = x[2], lane[3] = x[3];
}
#endif

/* ---- The same for both. ---- */

/* Where the next input of a patch goes, and how many fit before its unit ends. */
typedef struct {
    int16_t *lane;
    unsigned room;
} cursor_t;

/* Appends `count` values of x that lie `step` apart, or zeros if x is a null pointer. */
static void append(cursor_t *at, const int8_t *x, int count, int step)
{
    while (count > 0) {
        int16_t *lane = at->lane;
        int i = 0, n = NEXT_UNIT > UNIT && count > (int)at->room ? (int)at->room : count;
        if (x == NULL)
            for (; i < n; i++)
                lane[i] = 0;
        else if (step == 1) {
            for (; i + 4 <= n; i += 4)
                widen_four(x + i, lane + i);
            for (; i < n; i++)
                lane[i] = x[i];
        } else
            for (; i < n; i++)
                lane[i] = x[i * step];
        if (x != NULL)
            x += n * step;
        count -= n;
        at->lane += n;
        at->room -= (unsigned)n;
        if (NEXT_UNIT > UNIT && at->room == 0)
            at->lane += NEXT_UNIT - UNIT, at->room = UNIT;
    }
}

/* The input at one place of the kernel, for output pixel (row, column); a null pointer outside. */
static const int8_t *input_at(const layer_t *l, const int8_t *x, int row, int column, int ky, int kx)
{
    int h = row * l->stride_h + ky * l->dilation_h + l->first_h, w = column * l->stride_w + kx * l->dilation_w + l->first_w;

    return h < 0 || h >= l->in_h || w < 0 || w >= l->in_w ? NULL : x + h * l->in_step_h + w * l->in_step_w;
}

/* Patch number p: what output pixel `pixel` needs of the channels that begin at x. */
static void gather(const layer_t *l, const int8_t *x, int pixel, int p)
{
    int row = pixel / l->out_w, column = pixel % l->out_w, ky, kx;
    cursor_t to = {patch.lane + p * ROW, UNIT};

    for (ky = 0; ky < l->kernel_h; ky++)
        for (kx = 0; kx < l->kernel_w; kx++)
            append(&to, input_at(l, x, row, column, ky, kx), l->in_channels, l->in_step_c);
    append(&to, NULL, (int)(to.room % UNIT), 1);
    place[p] = row * l->out_step_h + column * l->out_step_w;
}

/* Results of two channels and four pixels from patch `first` on, as codes into y or as sums into wide_y. */
static void store(const layer_t *l, int32_t *sums, int channels, int first, int pixels, int8_t *y, int32_t *wide_y)
{
    const int32_t *to = place + first, *end = to + pixels, step = channels < 2 ? 0 : l->out_step_c;

    if (y)
        for (narrow(sums, l->shift, l->activation); to < end; to++, sums++)
            y[*to + step] = (int8_t)sums[4], y[*to] = (int8_t)sums[0];
    else
        for (; to < end; to++, sums++)
            wide_y[*to + step] = floor_shift(sums[4], 8 - l->bits), wide_y[*to] = floor_shift(sums[0], 8 - l->bits);
}

/* All channels of one group for the `count` pixels in the patches. */
static void channels_of_group(const layer_t *l, int group, int count, int8_t *y, int32_t *wide_y)
{
    const int units = (l->kernel_h * l->kernel_w * l->in_channels + UNIT - 1) / UNIT, outs = l->out_channels;
    const uint32_t *w = (const uint32_t *)l->weight + group * ((outs + 1) / 2) * units * l->bits;
    int out, p;

    for (out = 0; out < outs; out += 2, w += units * l->bits) {
        int channel = group * outs + out, channels = outs - out < 2 ? 1 : 2;
        int32_t to = channel * l->out_step_c, a = start(l, channel), b = start(l, channel + channels - 1), sums[8];
        unpack(l, w, units);
        for (p = 0; p < count; p += 4) {
            multiply(l, w, units, p, a, b, sums);
            store(l, sums, channels, p, count - p < 4 ? count - p : 4, y ? y + to : NULL, wide_y ? wide_y + to : NULL);
        }
    }
}

void conv(const layer_t *l, const int8_t *x, int8_t *y, int32_t *wide_y)
{
    int group, first, p, pixels = l->out_h * l->out_w;

    for (group = 0; group < l->groups; group++, x += l->in_channels * l->in_step_c)
        for (first = 0; first < pixels; first += ENGINE_PIXELS) {
            int count = pixels - first < ENGINE_PIXELS ? pixels - first : ENGINE_PIXELS;
            for (p = 0; p < count; p++)
                gather(l, x, first + p, p);
            channels_of_group(l, group, count, y, wide_y);
        }
}

/* Depthwise: no two channels share an input, so there is nothing to gather; 32 channels share the way to their places. */
void depthwise(const layer_t *l, const int8_t *x, int8_t *y, int32_t *wide_y)
{
    const int pixels = l->out_h * l->out_w, step = l->in_step_c;
    int pixel, c, ky, kx, i;

    for (pixel = 0; pixel < pixels; pixel++)
        for (c = 0; c < l->groups; c += 32) {
            const int row = pixel / l->out_w, column = pixel % l->out_w, n = l->groups - c < 32 ? l->groups - c : 32;
            const int8_t *w = (const int8_t *)l->weight + c, *from;
            int32_t sums[32] = {0}, to = row * l->out_step_h + column * l->out_step_w + c * l->out_step_c;
            for (i = 0; i < n; i++)
                sums[i] = start(l, c + i);
            for (ky = 0; ky < l->kernel_h; ky++)
                for (kx = 0; kx < l->kernel_w; kx++, w += l->groups) {
                    if ((from = input_at(l, x + c * step, row, column, ky, kx)) == NULL)
                        continue;
                    for (i = 0; i + 4 <= n; i += 4, from += 4 * step) {
                        sums[i] += w[i] * from[0], sums[i + 1] += w[i + 1] * from[step];
                        sums[i + 2] += w[i + 2] * from[2 * step], sums[i + 3] += w[i + 3] * from[3 * step];
                    }
                    for (; i < n; i++, from += step)
                        sums[i] += w[i] * *from;
                }
            for (i = 0; y && i < n; i += 8)
                narrow(sums + i, l->shift, l->activation);
            for (i = 0; i < n; i++, to += l->out_step_c)
                if (y)
                    y[to] = (int8_t)sums[i];
                else
                    wide_y[to] = sums[i];
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

/* Channels in the inner loop: y, which may be x, never lies behind the window's first place. */
static void max_window(const pool_t *p, const int8_t *corner, int8_t *y)
{
    int c, i, j;

    for (c = 0; c < p->channels; c++)
        y[c] = corner[c];
    for (i = 0; i < p->size_h; i++)
        for (j = 0; j < p->size_w; j++) {
            const int8_t *x = corner + (i * p->dilation_h * p->in_w + j * p->dilation_w) * p->channels;
            for (c = 0; c < p->channels; c++)
                y[c] = x[c] > y[c] ? x[c] : y[c];
        }
}

static void mean_window(const pool_t *p, const int8_t *corner, int8_t *y)
{
    int c, i, j;

    for (c = 0; c < p->channels; c++) {
        int32_t sum = 0;
        for (i = 0; i < p->size_h; i++)
            for (j = 0; j < p->size_w; j++)
                sum += corner[(i * p->dilation_h * p->in_w + j * p->dilation_w) * p->channels + c];
        y[c] = (int8_t)mean(sum, p->size_h * p->size_w, p->kind);
    }
}

void pool(const pool_t *p, const int8_t *x, int8_t *y)
{
    int row, column;

    for (row = 0; row < p->out_h; row++)
        for (column = 0; column < p->out_w; column++, y += p->channels) {
            const int8_t *corner = x + (row * p->stride_h * p->in_w + column * p->stride_w) * p->channels;
            if (p->kind == MAX)
                max_window(p, corner, y);
            else
                mean_window(p, corner, y);
        }
}

void eltwise(const int8_t *const *operands, int count, int sign, int32_t size, int8_t *y)
{
    const int8_t *a = operands[0], *b = operands[1];
    int32_t i;
    int k;

    for (i = 0; i < size; i++) {
        int32_t sum = a[i] + sign * b[i];
        for (k = 2; k < count; k++)
            sum += sign * operands[k][i];
        y[i] = (int8_t)clamp(sum, -128);
    }
}

void transpose(const int8_t *x, int32_t places, int32_t channels, int8_t *y)
{
    int32_t p, c;

    for (c = 0; c < channels; c++)
        for (p = 0; p < places; p++)
            *y++ = x[p * channels + c];
}

void collect(const loop_t *loop, int depth, const int8_t *x, const int32_t *wide_x, int32_t *y, int shift)
{
    int32_t i;

    for (i = 0; i < loop->count; i++, y += loop->write) {
        const int32_t place = i * loop->read;
        if (depth > 1)
            collect(loop + 1, depth - 1, x ? x + place : x, wide_x ? wide_x + place : wide_x, y, shift);
        else
            *y = (x ? x[place] : wide_x[place]) * ((int32_t)1 << shift);
    }
}

void join(const int8_t *x, int32_t places, int32_t channels, int32_t all, int8_t *y)
{
    int32_t p;

    for (p = 0; p < places; p++, x += channels, y += all)
        memcpy(y, x, (size_t)channels);
}
