/* Status codes and error messages.
 *
 * Every function that can fail returns a bitm_status and takes the caller's `bitm_error *err` last
 * (it may be NULL).  The message says what is wrong, where, what was expected and what was found.
 */
#ifndef BITM_STATUS_H
#define BITM_STATUS_H

#include "bitm.h"

#if defined(__GNUC__)
#define BITM_PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
#else
#define BITM_PRINTF_LIKE(text, first)
#endif

/* Fills *err (when not NULL) with status and the formatted message; returns status. */
bitm_status bitm_fail(bitm_error *err, bitm_status status, const char *format, ...)
    BITM_PRINTF_LIKE(3, 4);

/* Forwards a failure to the caller. */
#define BITM_TRY(expression)                                                                       \
    do {                                                                                           \
        bitm_status try_status_ = (expression);                                                    \
        if (try_status_ != BITM_OK) return try_status_;                                            \
    } while (0)

/* BITM_CHECK(condition, status, err, format, ...): fails with the message unless condition.  It
 * returns `status` itself, so that static analysis of one file knows that it is not BITM_OK. */
#define BITM_CHECK(condition, status, err, ...)                                                    \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            (void)bitm_fail(err, status, __VA_ARGS__);                                             \
            return status;                                                                         \
        }                                                                                          \
    } while (0)

#endif
