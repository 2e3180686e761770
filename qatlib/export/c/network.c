/* $arch: weights, tables and the order of operations. Generated. */
#include "network.h"

$includes#include "engine.h"

$constants
const uint32_t network_flash = $flash;

${helpers}void network(const int8_t *codes, int32_t *output)
{
$calls
}
