/* write_model FILE [small]: a model of random weights, for programs that want a file: as wide as
 * BERT-base, but short, or of small and awkward sizes. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "make_file.h"

int main(int n_arguments, char **arguments)
{
    const file_shape wide_shape = {.vocab_size = 1009,
                                   .hidden_size = 768,
                                   .n_layers = 4,
                                   .n_heads = 12,
                                   .head_size = 64,
                                   .intermediate_size = 3072,
                                   .max_positions = 512};
    bool is_small = n_arguments == 3 && strcmp(arguments[2], "small") == 0;
    if (n_arguments < 2 || (n_arguments > 2 && !is_small)) {
        (void)fprintf(stderr, "usage: %s FILE [small]\n", arguments[0]);
        return 2;
    }
    size_t n_bytes;
    void *bytes = make_file(is_small ? &small_shape : &wide_shape, 1, &n_bytes);
    FILE *file = bytes != NULL ? fopen(arguments[1], "wb") : NULL;
    bool is_well = file != NULL && fwrite(bytes, 1, n_bytes, file) == n_bytes;
    is_well = file != NULL && fclose(file) == 0 && is_well;
    free(bytes);
    if (!is_well) perror(arguments[1]);
    return is_well ? 0 : 1;
}
