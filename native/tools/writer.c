#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

/* Makes room for n more bytes and a terminator. */
static bool reserve(bitm_writer *w, size_t n)
{
    if (w->failed) return false;
    if (w->capacity - w->n_bytes > n) return true;
    size_t capacity = w->capacity < 1024 ? 1024 : w->capacity;
    while (capacity <= SIZE_MAX / 2 && capacity - w->n_bytes <= n)
        capacity *= 2;
    char *bytes = capacity - w->n_bytes > n ? realloc(w->bytes, capacity) : NULL;
    if (bytes == NULL) {
        w->failed = true;
        return false;
    }
    w->bytes = bytes;
    w->capacity = capacity;
    return true;
}

static void add(bitm_writer *w, const char *bytes, size_t n)
{
    if (!reserve(w, n)) return;
    memcpy(w->bytes + w->n_bytes, bytes, n);
    w->n_bytes += n;
}

void bitm_write(bitm_writer *w, const char *format, ...)
{
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int n = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (n < 0) w->failed = true;
    if (n >= 0 && reserve(w, (size_t)n)) {
        (void)vsnprintf(w->bytes + w->n_bytes, (size_t)n + 1, format, again);
        w->n_bytes += (size_t)n;
    }
    va_end(again);
}

void bitm_write_size(bitm_writer *w, uint64_t n_bytes)
{
    if (n_bytes < 1000)
        bitm_write(w, "%u bytes", (unsigned)n_bytes);
    else if (n_bytes < 1000000)
        bitm_write(w, "%.1f kB", (double)n_bytes / 1e3);
    else
        bitm_write(w, "%.1f MB", (double)n_bytes / 1e6);
}

bitm_status bitm_writer_flush(bitm_writer *w, bitm_error *err)
{
    if (w->failed) return bitm_tool_fail(err, BITM_NO_MEMORY, "no memory for the output");
    size_t n_written = w->n_bytes > 0 ? fwrite(w->bytes, 1, w->n_bytes, stdout) : 0;
    if (n_written != w->n_bytes || fflush(stdout) != 0)
        return bitm_tool_fail(err, BITM_IO, "cannot write to standard output");
    w->n_bytes = 0;
    return BITM_OK;
}

void bitm_writer_free(bitm_writer *w)
{
    free(w->bytes);
    *w = (bitm_writer){0};
}

/* ---- Characters ---- */

/* Reads the well-formed character (The Unicode Standard, table 3-7) at the start of n > 0 bytes;
 * returns its length, or 0 where there is none. */
static size_t read_char(const char *bytes, size_t n, uint32_t *code_point)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char lead = (unsigned char)bytes[0];
    size_t length = lead < 0x80 ? 1 : lead < 0xC0 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (length == 0 || length > n || lead >= 0xF8) return 0;
    uint32_t c = length == 1 ? lead : lead & (0x7FU >> length);
    for (size_t i = 1; i < length; i++) {
        if (((unsigned char)bytes[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | ((unsigned char)bytes[i] & 0x3F);
    }
    if (c < least[length] || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) return 0;
    *code_point = c;
    return length;
}

/* Characters that a terminal obeys instead of showing them: controls, line separators, and those
 * that turn the direction of what follows. */
static bool is_control(uint32_t c)
{
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x61C || c == 0x200E || c == 0x200F ||
           (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

void bitm_write_text(bitm_writer *w, const char *text, size_t n_bytes, size_t most, size_t width)
{
    size_t n_shown = 0; /* characters, escapes and dots included */
    for (size_t i = 0, n_chars = 0, length; i < n_bytes; i += length, n_chars++) {
        uint32_t c = 0;
        size_t before = w->n_bytes;
        length = read_char(text + i, n_bytes - i, &c);
        if (n_chars == most) {
            bitm_write(w, "...");
            n_shown += 3;
            break;
        }
        if (length > 0 && !is_control(c)) {
            add(w, text + i, length);
            n_shown++;
            continue;
        }
        if (length == 0) c = (unsigned char)text[i];
        bool as_byte = length == 0 || c < 0x80;
        bitm_write(w, as_byte ? "\\x%02x" : "\\u%04x", (unsigned)c);
        n_shown += w->n_bytes - before;
        if (length == 0) length = 1;
    }
    if (n_shown < width) bitm_write(w, "%*s", (int)(width - n_shown), "");
}

/* ---- JSON ---- */

static void begin_value(bitm_writer *w)
{
    if (!w->after_key && w->depth > 0)
        bitm_write(w, "%s\n%*s", w->is_empty ? "" : ",", (int)(2 * w->depth), "");
    w->after_key = false;
    w->is_empty = false;
}

void bitm_json_open(bitm_writer *w, char bracket)
{
    begin_value(w);
    bitm_write(w, "%c", bracket);
    w->depth++;
    w->is_empty = true;
}

void bitm_json_close(bitm_writer *w, char bracket)
{
    w->depth--;
    if (!w->is_empty) bitm_write(w, "\n%*s", (int)(2 * w->depth), "");
    bitm_write(w, w->depth == 0 ? "%c\n" : "%c", bracket);
    w->is_empty = false;
}

static void write_unit(bitm_writer *w, uint32_t unit)
{
    bitm_write(w, "\\u%04x", (unsigned)unit);
}

/* The letter that stands for c after a backslash, 0 where there is none. */
static char short_escape(uint32_t c)
{
    switch (c) {
    case '"':
    case '\\':
        return (char)c;
    case '\b':
        return 'b';
    case '\f':
        return 'f';
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    default:
        return 0;
    }
}

static void write_json_char(bitm_writer *w, uint32_t c)
{
    if (short_escape(c) != 0)
        bitm_write(w, "\\%c", short_escape(c));
    else if (c >= 0x20 && c < 0x7F)
        bitm_write(w, "%c", (int)c);
    else if (c < 0x10000)
        write_unit(w, c);
    else {
        write_unit(w, 0xD800 + ((c - 0x10000) >> 10));
        write_unit(w, 0xDC00 + ((c - 0x10000) & 0x3FF));
    }
}

void bitm_json_key(bitm_writer *w, const char *key)
{
    bitm_json_string(w, key);
    bitm_write(w, ": ");
    w->after_key = true;
}

void bitm_json_text(bitm_writer *w, const char *text, size_t n_bytes)
{
    begin_value(w);
    bitm_write(w, "\"");
    for (size_t i = 0, length; i < n_bytes; i += length) {
        uint32_t c = 0;
        length = read_char(text + i, n_bytes - i, &c);
        if (length > 0) {
            write_json_char(w, c);
        } else {
            write_unit(w, 0xDC00U + (unsigned char)text[i]);
            length = 1;
        }
    }
    bitm_write(w, "\"");
}

void bitm_json_string(bitm_writer *w, const char *string)
{
    bitm_json_text(w, string, strlen(string));
}

void bitm_json_integer(bitm_writer *w, int64_t number)
{
    begin_value(w);
    bitm_write(w, "%lld", (long long)number);
}

void bitm_json_float(bitm_writer *w, double number)
{
    begin_value(w);
    bitm_write(w, "%.17g", number); /* enough digits to get the same double back */
}

void bitm_json_bool(bitm_writer *w, bool truth)
{
    begin_value(w);
    bitm_write(w, truth ? "true" : "false");
}
