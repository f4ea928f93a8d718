/* write_model FILE [SEED]: a model of random weights, for programs that want a file: as wide as
 * BERT-base, but short. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "make_file.h"

int main(int n_arguments, char **arguments)
{
    const file_shape shape = {.vocab_size = 1009,
                              .hidden_size = 768,
                              .n_layers = 4,
                              .n_heads = 12,
                              .head_size = 64,
                              .intermediate_size = 3072,
                              .max_positions = 512};
    if (n_arguments < 2) {
        (void)fprintf(stderr, "usage: %s FILE [SEED]\n", arguments[0]);
        return 2;
    }
    size_t n_bytes;
    void *bytes =
        make_file(&shape, n_arguments > 2 ? strtoull(arguments[2], NULL, 10) : 1, &n_bytes);
    FILE *file = bytes != NULL ? fopen(arguments[1], "wb") : NULL;
    bool is_well = file != NULL && fwrite(bytes, 1, n_bytes, file) == n_bytes;
    is_well = file != NULL && fclose(file) == 0 && is_well;
    free(bytes);
    if (!is_well) perror(arguments[1]);
    return is_well ? 0 : 1;
}
