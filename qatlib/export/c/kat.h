/* Known-answer test: pictures and what the integer reference gives for them. */
#ifndef KAT_H
#define KAT_H

#include "network.h"

#define KAT_PICTURES $count

$pictures
$answers
#endif
