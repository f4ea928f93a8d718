/* A plugin of qemu-user that counts executed instructions by the function that they are in.
 *
 *   gcc -shared -fPIC -O2 qemu_count.c -o qemu_count.so
 *   qemu-aarch64 -plugin ./qemu_count.so -d plugin -D counts.txt program ...
 *
 * Its interface is that of qemu 4.2 to 8 (docs/devel/tcg-plugins.rst), declared here because
 * distributions do not ship its header.  Blocks of code are counted whole, as they are entered;
 * counts are exact for one thread. */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 = 0 };
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id,
                                           void (*call)(plugin_id id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int operation, void *at,
                                              uint64_t value);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*call)(plugin_id id, void *data),
                                    void *data);
void qemu_plugin_outs(const char *text);

EXPORT int qemu_plugin_version = 1;

enum { MAX_FUNCTIONS = 4096, MAX_NAME = 64 };

static struct {
    char name[MAX_NAME];
    uint64_t count;
} functions[MAX_FUNCTIONS];
static size_t n_functions;

static uint64_t *counter_of(const char *name)
{
    size_t i = 0;
    while (i < n_functions && strncmp(functions[i].name, name, MAX_NAME - 1) != 0)
        i++;
    if (i == MAX_FUNCTIONS) i--; /* the last one counts the rest */
    if (i == n_functions) (void)snprintf(functions[n_functions++].name, MAX_NAME, "%s", name);
    return &functions[i].count;
}

static void translate(plugin_id id, struct qemu_plugin_tb *tb)
{
    const char *name = qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(tb, 0));
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64,
                                             counter_of(name != NULL ? name : "?"),
                                             qemu_plugin_tb_n_insns(tb));
}

static void report(plugin_id id, void *data)
{
    (void)id;
    (void)data;
    for (size_t i = 0; i < n_functions; i++) {
        char line[MAX_NAME + 32];
        (void)snprintf(line, sizeof line, "%" PRIu64 " %s\n", functions[i].count,
                       functions[i].name);
        qemu_plugin_outs(line);
    }
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int n_arguments, char **arguments)
{
    (void)info;
    (void)n_arguments;
    (void)arguments;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_atexit_cb(id, report, NULL);
    return 0;
}
