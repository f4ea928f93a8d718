/* Assertions of the C tests: each is counted, a failed one says where it stands.
 *
 * A test program makes a `checks`, calls CHECK with it and ends with `return
 * check_report(&checks)`.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stdio.h>

#include "bitm.h"

typedef struct checks {
    unsigned n_passed, n_failed;
} checks;

static inline bool check_that(checks *c, bool condition, const char *text, const char *file,
                              int line)
{
    if (condition) {
        c->n_passed++;
    } else {
        c->n_failed++;
        (void)printf("%s:%d: FAILED: %s\n", file, line, text);
    }
    return condition;
}

/* A status with its message; err is the bitm_error that the call has filled, or NULL. */
static inline bool check_status(checks *c, bitm_status found, bitm_status expected,
                                const bitm_error *err, const char *text, const char *file, int line)
{
    if (check_that(c, found == expected, text, file, line)) return true;
    (void)printf("    expected %s, found %s: %s\n", bitm_status_name(expected),
                 bitm_status_name(found), err != NULL ? err->message : "");
    return false;
}

#define CHECK(c, condition) check_that(c, condition, #condition, __FILE__, __LINE__)
#define CHECK_STATUS(c, expected, err, call)                                                       \
    check_status(c, call, expected, err, #call, __FILE__, __LINE__)

/* Prints the count; returns the exit status of the program. */
static inline int check_report(const checks *c)
{
    (void)printf("%u passed, %u failed\n", c->n_passed, c->n_failed);
    return c->n_failed == 0 ? 0 : 1;
}

#endif
