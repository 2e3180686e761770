/* $arch: int8 codes (C, H, W) in, int32 integers out, (C, H, W) too, the outputs one after the other.
$exponents */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdint.h>

#define NETWORK_INPUT $input
#define NETWORK_OUTPUT $output
#define NETWORK_ARENA $arena   /* bytes for activations */
#define NETWORK_PATCH $patch   /* most inputs of one output, in units of 16 */
#define NETWORK_BITS $bits   /* widths of weights in use, added up */
#define NETWORK_SINGLE $single   /* 1: some layer has a single output pixel */

extern const uint32_t network_flash; /* bytes of weights, biases and tables */
void network(const int8_t *codes, int32_t *output);

/* Compile with -DNETWORK_WATCH and define it, to be told when operation number `done` of network.c has been computed. */
#ifdef NETWORK_WATCH
void network_watch(int done);
#endif

#endif
