/* $arch: int8 codes (C, H, W) in, int32 integers out, the outputs one after the other.
$exponents */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdint.h>

#define NETWORK_INPUT $input
#define NETWORK_OUTPUT $output
#define NETWORK_ARENA $arena   /* bytes for activations */
#define NETWORK_PLANE $plane   /* sums of one output channel, 4 bytes each */
#define NETWORK_KERNEL $kernel   /* unpacked weights of one output channel, bytes */
#define NETWORK_RAM (NETWORK_ARENA + 4 * NETWORK_PLANE + NETWORK_KERNEL + NETWORK_INPUT + 4 * NETWORK_OUTPUT)

extern const uint32_t network_flash; /* bytes of weights, biases and tables */
void network(const int8_t *codes, int32_t *output);

#endif
