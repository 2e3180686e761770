/* The two intrinsics that the engine's loops for Arm's DSP extension use, in plain C: so they run on any computer, sanitizers too. */
#ifndef ARM_ACLE_H
#define ARM_ACLE_H

#include <stdint.h>

typedef int32_t int8x4_t;
typedef int32_t int16x2_t;

static inline int32_t half(uint32_t word)
{
    return (int32_t)((word & 0xffffu) ^ 0x8000u) - 0x8000;
}

static inline int16x2_t __sxtb16(int8x4_t bytes)
{
    uint32_t low = (uint32_t)bytes & 0xffu, high = (uint32_t)bytes >> 16 & 0xffu;

    return (int16x2_t)((((low ^ 0x80u) - 0x80u) & 0xffffu) | (((high ^ 0x80u) - 0x80u) << 16));
}

static inline int32_t __smlad(int16x2_t a, int16x2_t b, int32_t sum)
{
    return sum + half((uint32_t)a) * half((uint32_t)b) + half((uint32_t)a >> 16) * half((uint32_t)b >> 16);
}

#endif
