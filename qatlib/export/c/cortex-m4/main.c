/* Known-answer test on a Cortex-M4. With a command line "network IN OUT": int8 pictures from file IN, int32 outputs to file OUT. */
#include "board.h"
#include "engine.h"
#include "kat.h"
#include "network.h"

#ifdef EMULATED
#define UNIT_OF_TIME " instructions"
#else
#define UNIT_OF_TIME " cycles"
#endif

static int8_t picture[NETWORK_INPUT];
static int32_t output[NETWORK_OUTPUT];
volatile int passed; /* for a debugger without semihosting */

#ifdef NETWORK_WATCH
static uint32_t before;

void network_watch(int done)
{
    board_print_number("operation ", (uint32_t)done, ": ");
    board_print_number("", board_counter() - before, UNIT_OF_TIME "\n");
    before = board_counter();
}
#endif

static uint32_t timed(void)
{
    uint32_t begin = board_counter();

#ifdef NETWORK_WATCH
    before = begin;
#endif
    network(picture, output);
    return board_counter() - begin;
}

static void report(uint64_t used, int pictures)
{
    board_print_number("", (uint32_t)pictures, " pictures, ");
    board_print_number("", pictures ? (uint32_t)(used / (uint32_t)pictures) : 0, UNIT_OF_TIME " a picture\n");
    board_print_number("stack: ", board_stack_used(), " of ");
    board_print_number("", board_stack_size(), " bytes used\n");
}

static int known_answers(void)
{
    uint64_t used = 0;
    int i;

    for (i = 0; i < KAT_PICTURES; i++) {
        kat_picture(i, picture);
        used += timed();
        passed += kat_checksum(output) == kat_checksums[i];
    }
    board_print(passed == KAT_PICTURES ? "PASS: " : "FAIL: ");
    board_print_number("", (uint32_t)passed, " of ");
    board_print_number("", KAT_PICTURES, " known answers\n");
    report(used, KAT_PICTURES);
    return passed != KAT_PICTURES;
}

static int whole_file(const char *in_name, const char *out_name)
{
    int in = board_open(in_name, 0), out = board_open(out_name, 1), pictures = 0;
    uint64_t used = 0;
    uint32_t got;

    if (in < 0 || out < 0) {
        board_print("cannot open the file of pictures or of outputs\n");
        return 2;
    }
    while ((got = board_read(in, picture, sizeof picture)) == sizeof picture) {
        used += timed();
        pictures++;
        if (board_write(out, output, sizeof output) != 0) {
            board_print("cannot write the file of outputs\n");
            return 2;
        }
    }
    if (got != 0) {
        board_print("the file of pictures does not hold whole ones\n");
        return 2;
    }
    report(used, pictures);
    return 0;
}

int main(void)
{
    char *arguments[4];

    return board_arguments(arguments, 4) == 3 ? whole_file(arguments[1], arguments[2]) : known_answers();
}
