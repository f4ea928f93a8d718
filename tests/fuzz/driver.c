/* Runs a fuzz target without libFuzzer, under any compiler and sanitizer:
 *
 *     fuzz_run [--mutants N] [--seed N] [--keep FILE] FILE...
 *
 * runs every file as it is, then N mutants of them.  Fails when one takes longer than a second.
 * --keep leaves the input at work in a file, for the one that ends the process. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

enum { MAX_FILES = 4096, ROOM = 1024, HANG_SECONDS = 60 };

typedef struct input {
    uint8_t *bytes;
    size_t size;
} input;

static input read_input(const char *path)
{
    input in = {0};
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        perror(path);
        exit(2);
    }
    in.size = (size_t)ftell(file);
    rewind(file);
    in.bytes = malloc(in.size + ROOM);
    if (in.bytes == NULL || fread(in.bytes, 1, in.size, file) != in.size) {
        perror(path);
        exit(2);
    }
    (void)fclose(file);
    return in;
}

/* The seconds of processor time that the input took. */
static double timed(const uint8_t *bytes, size_t size)
{
    clock_t begin = clock();
    (void)alarm(HANG_SECONDS);
    (void)LLVMFuzzerTestOneInput(bytes, size);
    (void)alarm(0);
    return (double)(clock() - begin) / CLOCKS_PER_SEC;
}

static const char *value_of(const char *option, int *i, int argc, char **argv)
{
    if (*i + 1 >= argc) {
        (void)fprintf(stderr, "%s: expected a value\n", option);
        exit(2);
    }
    return argv[++*i];
}

/* Leaves the input in a file while it runs, so that one that ends the process is at hand. */
static void keep_input(const char *path, const uint8_t *bytes, size_t size)
{
    if (path == NULL) return;
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static input inputs[MAX_FILES];
    unsigned long n_inputs = 0, n_mutants = 0, seed = 1;
    const char *keep = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--mutants") == 0)
            n_mutants = strtoul(value_of(argv[i], &i, argc, argv), NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0)
            seed = strtoul(value_of(argv[i], &i, argc, argv), NULL, 10);
        else if (strcmp(argv[i], "--keep") == 0)
            keep = value_of(argv[i], &i, argc, argv);
        else if (n_inputs < MAX_FILES)
            inputs[n_inputs++] = read_input(argv[i]);
    }
    if (n_inputs == 0) {
        (void)fprintf(stderr, "expected at least one file\n");
        return 2;
    }
    double slowest = 0.0;
    for (unsigned long i = 0; i < n_inputs; i++) {
        keep_input(keep, inputs[i].bytes, inputs[i].size);
        double seconds = timed(inputs[i].bytes, inputs[i].size);
        slowest = seconds > slowest ? seconds : slowest;
    }
    for (unsigned long number = 0; number < n_mutants; number++) {
        /* Its own seed: a mutant is found again without those before it. */
        random_state random = {seed + 0x9E37 * (uint64_t)number};
        const input *in = &inputs[random_below(&random, (uint32_t)n_inputs)];
        uint8_t *mutant = malloc(in->size + ROOM);
        if (mutant == NULL) return 2;
        memcpy(mutant, in->bytes, in->size);
        size_t size = mutate(mutant, in->size, in->size + ROOM, &random);
        keep_input(keep, mutant, size);
        double seconds = timed(mutant, size);
        slowest = seconds > slowest ? seconds : slowest;
        free(mutant);
    }
    for (unsigned long i = 0; i < n_inputs; i++)
        free(inputs[i].bytes);
    (void)printf("%lu files, %lu mutants of seed %lu, slowest %.3f s\n", n_inputs, n_mutants, seed,
                 slowest);
    if (slowest > 1.0) {
        (void)printf("an input took longer than a second\n");
        return 1;
    }
    return 0;
}
