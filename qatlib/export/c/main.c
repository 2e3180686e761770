/* ./network: known-answer test, sizes, time.   ./network IN OUT: int8 pictures from file IN, int32 outputs to file OUT. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "kat.h"
#include "network.h"

static int8_t picture[NETWORK_INPUT];
static int32_t output[NETWORK_OUTPUT];

static int known_answers(void)
{
    long wrong = 0;
    int i, j, passed = 0;

    for (i = 0; i < KAT_PICTURES; i++) {
        long before = wrong;
        network(kat_pictures[i], output);
        for (j = 0; j < NETWORK_OUTPUT; j++)
            wrong += output[j] != kat_answers[i][j];
        passed += wrong == before;
    }
    printf("%s: %d of %d known answers, %ld of %ld outputs differ\n", wrong ? "FAIL" : "PASS", passed, KAT_PICTURES, wrong,
           (long)KAT_PICTURES * NETWORK_OUTPUT);
    printf("flash: %ld bytes of weights, biases and tables; RAM: %ld bytes of buffers\n", (long)network_flash, (long)NETWORK_RAM);
    return wrong != 0;
}

static void timing(void)
{
    clock_t begin = clock(), used;
    long runs = 0;

    do {
        network(kat_pictures[runs++ % KAT_PICTURES], output);
        used = clock() - begin;
    } while (used < CLOCKS_PER_SEC / 5);
    printf("time: %.3f ms a picture on this computer\n", 1e3 * (double)used / CLOCKS_PER_SEC / (double)runs);
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
    printf("%ld pictures, %.4f ms a picture\n", count, count ? 1e3 * (double)used / CLOCKS_PER_SEC / (double)count : 0.0);
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
