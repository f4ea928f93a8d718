#include "status.h"

#include <stdarg.h>
#include <stdio.h>

bitm_status bitm_fail(bitm_error *err, bitm_status status, const char *format, ...)
{
    if (err != NULL) {
        va_list arguments;
        va_start(arguments, format);
        err->status = status;
        (void)vsnprintf(err->message, sizeof err->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

#define NAME_OF(status)                                                                            \
    case BITM_##status:                                                                            \
        return #status

const char *bitm_status_name(bitm_status status)
{
    switch (status) {
        NAME_OF(OK);
        NAME_OF(ARGUMENT);
        NAME_OF(NO_MEMORY);
        NAME_OF(IO);
        NAME_OF(UNSUPPORTED);
        NAME_OF(BUSY);
        NAME_OF(INTERNAL);
        NAME_OF(DEVICE);
        NAME_OF(FILE_MAGIC);
        NAME_OF(FILE_VERSION);
        NAME_OF(FILE_FEATURE);
        NAME_OF(FILE_TRUNCATED);
        NAME_OF(FILE_TRAILING);
        NAME_OF(FILE_HEADER);
        NAME_OF(FILE_HEADER_CHECKSUM);
        NAME_OF(FILE_TABLES_CHECKSUM);
        NAME_OF(FILE_LIMIT);
        NAME_OF(FILE_SECTION);
        NAME_OF(FILE_CONFIG);
        NAME_OF(FILE_NAME);
        NAME_OF(FILE_TENSOR_ORDER);
        NAME_OF(FILE_TENSOR_DTYPE);
        NAME_OF(FILE_TENSOR_SHAPE);
        NAME_OF(FILE_TENSOR_PLACE);
        NAME_OF(FILE_TENSOR_MISSING);
        NAME_OF(FILE_TENSOR_UNKNOWN);
        NAME_OF(FILE_QUANTIZER);
        NAME_OF(FILE_VOCABULARY);
        NAME_OF(FILE_METADATA);
        NAME_OF(FILE_TENSOR_CHECKSUM);
        NAME_OF(FILE_PADDING);
        NAME_OF(FILE_VALUE);
        NAME_OF(FILE_RESERVED);
        NAME_OF(FILE_TENSOR_LAYOUT);
        NAME_OF(TOO_LONG);
        NAME_OF(NO_MASK);
        NAME_OF(TOKEN);
        NAME_OF(POSITION);
        NAME_OF(TEXT);
        NAME_OF(NO_HEAD);
        NAME_OF(NO_VOCABULARY);
    }
    return "UNKNOWN";
}
