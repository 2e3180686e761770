/* $arch: weights, tables and the order of operations. Generated. */
#include "network.h"
#include "engine.h"

#ifdef NETWORK_WATCH
#define WATCH(done) network_watch(done)
#else
#define WATCH(done) ((void)0)
#endif

$constants
const uint32_t network_flash = $flash;

${memory}void network(const int8_t *codes, int32_t *output)
{
$calls
}
