/* Known-answer test: pictures, and the checksums of what the integer reference gives for them. */
#ifndef KAT_H
#define KAT_H

#include <string.h>

#include "network.h"

#define KAT_PICTURES $count

static const uint32_t kat_checksums[KAT_PICTURES] = {$checksums};
$pictures
/* Picture number i. */
static void kat_picture(int i, int8_t *codes)
{
$picture
}

/* Of all outputs, in their order (FNV-1a with a whole integer a step): one different integer gives another one. */
static uint32_t kat_checksum(const int32_t *output)
{
    uint32_t sum = 2166136261u;
    int i;

    for (i = 0; i < NETWORK_OUTPUT; i++)
        sum = (sum ^ (uint32_t)output[i]) * 16777619u;
    return sum;
}

#endif
