/* ./network: known-answer test, sizes, time.   ./network IN OUT: int8 pictures from file IN, int32 outputs to file OUT. */
#include <stdio.h>
#include <time.h>

#include "engine.h"
#include "kat.h"
#include "network.h"

static int8_t picture[NETWORK_INPUT];
static int32_t output[NETWORK_OUTPUT];

static int known_answers(void)
{
    int i, passed = 0;

    for (i = 0; i < KAT_PICTURES; i++) {
        kat_picture(i, picture);
        network(picture, output);
        passed += kat_checksum(output) == kat_checksums[i];
    }
    printf("%s: %d of %d known answers\n", passed == KAT_PICTURES ? "PASS" : "FAIL", passed, KAT_PICTURES);
    printf("flash: %ld bytes of weights, biases and tables; RAM: %ld bytes of buffers\n", (long)network_flash,
           (long)(NETWORK_ARENA + ENGINE_RAM + NETWORK_INPUT + 4 * NETWORK_OUTPUT));
    return passed != KAT_PICTURES;
}

/* Prints `used` clock ticks of `runs` pictures as milliseconds a picture; in integers, which every printf knows. */
static void print_time(clock_t used, long runs)
{
    long nanoseconds = (long)((double)used / CLOCKS_PER_SEC * 1e9 / (double)runs);

    printf("%ld.%04ld ms a picture\n", nanoseconds / 1000000, nanoseconds / 100 % 10000);
}

static void timing(void)
{
    clock_t begin = clock(), used = 0;
    long runs = 0;

    if (begin == (clock_t)-1) {
        printf("time: this computer has no clock()\n");
        return;
    }
    while (used < CLOCKS_PER_SEC / 5 && runs < 1000000) {
        network(picture, output);
        runs++;
        used = clock() - begin;
    }
    printf("time: ");
    print_time(used, runs);
}

static int whole_file(const char *in_name, const char *out_name)
{
    FILE *in = fopen(in_name, "rb"), *out = in ? fopen(out_name, "wb") : NULL;
    clock_t used = 0;
    size_t got = 0;
    long count = 0;
    int bad;

    if (!in || !out) {
        fprintf(stderr, "cannot open %s\n", in ? out_name : in_name);
        if (in)
            fclose(in);
        return 2;
    }
    while ((got = fread(picture, 1, sizeof picture, in)) == sizeof picture) {
        clock_t begin = clock();
        network(picture, output);
        used += clock() - begin;
        if (fwrite(output, sizeof output, 1, out) != 1)
            break;
        count++;
    }
    bad = got == sizeof picture || ferror(in);
    fclose(in);
    if (fclose(out) != 0 || bad) {
        fprintf(stderr, "cannot read %s or write %s\n", in_name, out_name);
        return 2;
    }
    if (got != 0) {
        fprintf(stderr, "%s does not hold whole pictures of %d bytes\n", in_name, NETWORK_INPUT);
        return 2;
    }
    printf("%ld pictures, ", count);
    print_time(used, count ? count : 1);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3)
        return whole_file(argv[1], argv[2]);
    if (argc != 1) {
        fprintf(stderr, "usage: %s [IN OUT]\n", argv[0]);
        return 2;
    }
    if (known_answers())
        return 1;
    timing();
    return 0;
}
