#if !defined(_WIN32)
#define _GNU_SOURCE /* sched_getaffinity */
#endif

#include "os.h"

#include <stdlib.h>

void *bitm_os_allocate(void *context, size_t n_bytes)
{
    (void)context;
    return malloc(n_bytes);
}

void bitm_os_release(void *context, void *memory)
{
    (void)context;
    free(memory);
}

void bitm_os_pause(void)
{
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    __builtin_ia32_pause();
#elif defined(__GNUC__) && (defined(__aarch64__) || __ARM_ARCH >= 7)
    __asm__ volatile("yield");
#endif
}

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

void bitm_os_expect_use(void *memory, size_t n_bytes)
{
    (void)memory;
    (void)n_bytes;
}

_Static_assert(sizeof(SRWLOCK) <= sizeof(bitm_mutex), "storage");
_Static_assert(sizeof(CONDITION_VARIABLE) <= sizeof(bitm_condition), "storage");
_Static_assert(sizeof(HANDLE) <= sizeof(((bitm_thread *)0)->storage), "storage");

bitm_status bitm_os_map_file(bitm_mapping *mapping, const char *path, bitm_error *err)
{
    static const char empty[1] = {0};
    wchar_t wide[32768];
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 32768) == 0)
        return bitm_fail(err, BITM_IO, "%s: not a path", path);
    HANDLE file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING,
                              FILE_ATTRIBUTE_NORMAL, NULL);
    if (file == INVALID_HANDLE_VALUE)
        return bitm_fail(err, BITM_IO, "%s: cannot open: error %lu", path, GetLastError());
    LARGE_INTEGER size;
    if (!GetFileSizeEx(file, &size)) {
        CloseHandle(file);
        return bitm_fail(err, BITM_IO, "%s: cannot tell its size", path);
    }
    mapping->n_bytes = (uint64_t)size.QuadPart;
    mapping->bytes = empty;
    if (mapping->n_bytes > 0) {
        HANDLE view = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
        mapping->bytes = view != NULL ? MapViewOfFile(view, FILE_MAP_READ, 0, 0, 0) : NULL;
        if (view != NULL) CloseHandle(view);
    }
    CloseHandle(file);
    BITM_CHECK(mapping->bytes != NULL, BITM_IO, err, "%s: cannot map: error %lu", path,
               GetLastError());
    return BITM_OK;
}

void bitm_os_unmap_file(bitm_mapping *mapping)
{
    if (mapping->n_bytes > 0) (void)UnmapViewOfFile(mapping->bytes);
    mapping->n_bytes = 0;
}

uint32_t bitm_os_cpu_count(void)
{
    DWORD_PTR process = 0, machine = 0;
    uint32_t n = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &process, &machine))
        for (; process != 0; process &= process - 1)
            n++;
    return n > 0 ? n : 1;
}

bool bitm_os_allow_tiles(void)
{
    return false;
}

uint32_t bitm_os_arm_abilities(void)
{
    uint32_t abilities = 0;
#if defined(__aarch64__) || defined(_M_ARM64)
    enum { HAS_DOTPROD = 43 }; /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE, not in older headers */
    abilities |= BITM_ARM_NEON;
    if (IsProcessorFeaturePresent(HAS_DOTPROD)) abilities |= BITM_ARM_DOTPROD;
#endif
    return abilities;
}

uint64_t bitm_os_process_id(void)
{
    return GetCurrentProcessId();
}

bitm_status bitm_os_library_symbol(const char *name, const char *symbol, void **found,
                                   bitm_error *err)
{
    HMODULE self = NULL;
    wchar_t path[32768];
    DWORD flags =
        GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    DWORD n = 0;
    if (GetModuleHandleExW(flags, (LPCWSTR)(void *)&bitm_os_library_symbol, &self))
        n = GetModuleFileNameW(self, path, 32768);
    while (n > 0 && path[n - 1] != L'\\')
        n--;
    int n_name = MultiByteToWideChar(CP_UTF8, 0, name, -1, path + n, 32000 - (int)n);
    if (n == 0 || n_name == 0)
        return bitm_fail(err, BITM_UNSUPPORTED, "cannot tell where %s.dll would be", name);
    static const wchar_t suffix[] = L".dll";
    for (size_t i = 0; i < sizeof suffix / sizeof suffix[0]; i++)
        path[n + (DWORD)n_name - 1 + i] = suffix[i];
    HMODULE library = LoadLibraryW(path);
    if (library == NULL)
        return bitm_fail(err, BITM_UNSUPPORTED, "%s.dll is not beside this library: error %lu",
                         name, GetLastError());
    *found = (void *)(uintptr_t)GetProcAddress(library, symbol);
    if (*found == NULL)
        return bitm_fail(err, BITM_UNSUPPORTED, "%s.dll does not have %s", name, symbol);
    return BITM_OK;
}

static DWORD WINAPI thread_main(LPVOID argument)
{
    bitm_thread *thread = argument;
    thread->run(thread->context);
    return 0;
}

bool bitm_os_thread_start(bitm_thread *thread)
{
    HANDLE handle = CreateThread(NULL, BITM_OS_STACK_BYTES, thread_main, thread, 0, NULL);
    *(HANDLE *)(void *)thread->storage = handle;
    return handle != NULL;
}

void bitm_os_thread_join(bitm_thread *thread)
{
    HANDLE handle = *(HANDLE *)(void *)thread->storage;
    (void)WaitForSingleObject(handle, INFINITE);
    (void)CloseHandle(handle);
}

bool bitm_os_mutex_init(bitm_mutex *mutex)
{
    InitializeSRWLock((SRWLOCK *)(void *)mutex->storage);
    return true;
}

void bitm_os_mutex_destroy(bitm_mutex *mutex)
{
    (void)mutex;
}

void bitm_os_mutex_lock(bitm_mutex *mutex)
{
    AcquireSRWLockExclusive((SRWLOCK *)(void *)mutex->storage);
}

void bitm_os_mutex_unlock(bitm_mutex *mutex)
{
    ReleaseSRWLockExclusive((SRWLOCK *)(void *)mutex->storage);
}

bool bitm_os_condition_init(bitm_condition *condition)
{
    InitializeConditionVariable((CONDITION_VARIABLE *)(void *)condition->storage);
    return true;
}

void bitm_os_condition_destroy(bitm_condition *condition)
{
    (void)condition;
}

void bitm_os_condition_wait(bitm_condition *condition, bitm_mutex *mutex)
{
    (void)SleepConditionVariableSRW((CONDITION_VARIABLE *)(void *)condition->storage,
                                    (SRWLOCK *)(void *)mutex->storage, INFINITE, 0);
}

void bitm_os_condition_broadcast(bitm_condition *condition)
{
    WakeAllConditionVariable((CONDITION_VARIABLE *)(void *)condition->storage);
}

#else

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#endif
#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__))
#include <sys/auxv.h>
#elif defined(__APPLE__) && defined(__aarch64__)
#include <sys/sysctl.h>
#endif

/* Linux has huge pages for those who ask: 6 page faults for BERT-base's weights in place of 2,600.
 */
void bitm_os_expect_use(void *memory, size_t n_bytes)
{
#if defined(MADV_HUGEPAGE)
    size_t mask = (size_t)sysconf(_SC_PAGESIZE) - 1;
    size_t skipped = -(uintptr_t)memory & mask;
    if (n_bytes > skipped)
        (void)madvise((uint8_t *)memory + skipped, (n_bytes - skipped) & ~mask, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)n_bytes;
#endif
}

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(bitm_mutex), "storage");
_Static_assert(sizeof(pthread_cond_t) <= sizeof(bitm_condition), "storage");
_Static_assert(sizeof(pthread_t) <= sizeof(((bitm_thread *)0)->storage), "storage");

bitm_status bitm_os_map_file(bitm_mapping *mapping, const char *path, bitm_error *err)
{
    static const char empty[1] = {0};
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return bitm_fail(err, BITM_IO, "%s: %s", path, strerror(errno));
    struct stat facts;
    if (fstat(descriptor, &facts) != 0 || !S_ISREG(facts.st_mode)) {
        (void)close(descriptor);
        return bitm_fail(err, BITM_IO, "%s: not a regular file", path);
    }
    mapping->n_bytes = (uint64_t)facts.st_size;
    mapping->bytes = empty;
    if (mapping->n_bytes > SIZE_MAX / 2) {
        (void)close(descriptor);
        return bitm_fail(err, BITM_IO, "%s: too large for this machine's addresses", path);
    }
    if (mapping->n_bytes > 0) {
        void *bytes = mmap(NULL, (size_t)mapping->n_bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
        mapping->bytes = bytes != MAP_FAILED ? bytes : NULL;
    }
    int reason = errno;
    (void)close(descriptor);
    if (mapping->bytes == NULL)
        return bitm_fail(err, BITM_NO_MEMORY, "%s: cannot map: %s", path, strerror(reason));
    return BITM_OK;
}

void bitm_os_unmap_file(bitm_mapping *mapping)
{
    if (mapping->n_bytes > 0)
        (void)munmap((void *)(uintptr_t)mapping->bytes, (size_t)mapping->n_bytes);
    mapping->n_bytes = 0;
}

#if defined(__linux__)
/* CPUs of the cgroup (version 2) that holds this process, rounded up; 0 where there is no quota. */
static uint32_t cgroup_cpu_quota(void)
{
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (file == NULL) return 0;
    unsigned long quota = 0, period = 0;
    int n_read = fscanf(file, "%lu %lu", &quota, &period); /* "max 100000" reads nothing */
    (void)fclose(file);
    return n_read == 2 && period > 0 ? (uint32_t)((quota + period - 1) / period) : 0;
}
#endif

uint32_t bitm_os_cpu_count(void)
{
    uint32_t n = 0;
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = (uint32_t)CPU_COUNT(&set);
    uint32_t quota = cgroup_cpu_quota();
    if (quota > 0 && quota < n) n = quota;
#endif
    if (n == 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        n = online > 0 ? (uint32_t)online : 1;
    }
    return n;
}

bool bitm_os_allow_tiles(void)
{
#if defined(__linux__) && defined(__x86_64__)
    /* Linux, Documentation/arch/x86/xstate.rst. */
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

#if defined(__linux__) && defined(__aarch64__)
uint32_t bitm_os_arm_abilities(void)
{
    /* Bits of AT_HWCAP and AT_HWCAP2: arch/arm64/include/uapi/asm/hwcap.h of Linux. */
    const unsigned long has_neon = 1UL << 1, has_dotprod = 1UL << 20, has_i8mm = 1UL << 13;
    unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    return ((first & has_neon) != 0 ? BITM_ARM_NEON : 0U) |
           ((first & has_dotprod) != 0 ? BITM_ARM_DOTPROD : 0U) |
           ((second & has_i8mm) != 0 ? BITM_ARM_I8MM : 0U);
}
#elif defined(__linux__) && defined(__arm__)
uint32_t bitm_os_arm_abilities(void)
{
    /* Bits of AT_HWCAP: arch/arm/include/uapi/asm/hwcap.h of Linux. */
    const unsigned long neon_and_vfpv4 = 1UL << 12 | 1UL << 16;
    return (getauxval(AT_HWCAP) & neon_and_vfpv4) == neon_and_vfpv4 ? BITM_ARM_NEON : 0U;
}
#elif defined(__APPLE__) && defined(__aarch64__)
static bool system_has(const char *feature)
{
    int value = 0;
    size_t n_bytes = sizeof value;
    return sysctlbyname(feature, &value, &n_bytes, NULL, 0) == 0 && value != 0;
}

uint32_t bitm_os_arm_abilities(void)
{
    return BITM_ARM_NEON | (system_has("hw.optional.arm.FEAT_DotProd") ? BITM_ARM_DOTPROD : 0U) |
           (system_has("hw.optional.arm.FEAT_I8MM") ? BITM_ARM_I8MM : 0U);
}
#else
uint32_t bitm_os_arm_abilities(void)
{
#if defined(__aarch64__)
    return BITM_ARM_NEON; /* part of the architecture; no more is known */
#else
    return 0;
#endif
}
#endif

uint64_t bitm_os_process_id(void)
{
    return (uint64_t)getpid();
}

#if defined(__APPLE__)
#define LIBRARY_SUFFIX "dylib"
#else
#define LIBRARY_SUFFIX "so"
#endif

/* An address of this library's, to find its file by. */
static const char here;

/* The path of the file that this code was loaded from.  Of a program that was found by its name
 * alone dladdr tells no more than that name, which must not lead into the current folder. */
static bool own_path(char *path, size_t n_bytes)
{
    Dl_info info;
    if (dladdr(&here, &info) != 0 && info.dli_fname != NULL &&
        strchr(info.dli_fname, '/') != NULL) {
        int n = snprintf(path, n_bytes, "%s", info.dli_fname);
        return n > 0 && (size_t)n < n_bytes;
    }
    ssize_t n = readlink("/proc/self/exe", path, n_bytes - 1);
    if (n < 0) return false;
    path[n] = '\0';
    return true;
}

bitm_status bitm_os_library_symbol(const char *name, const char *symbol, void **found,
                                   bitm_error *err)
{
    char self[4096], path[4096 + 64];
    const char *slash = own_path(self, sizeof self) ? strrchr(self, '/') : NULL;
    if (slash == NULL)
        return bitm_fail(err, BITM_UNSUPPORTED,
                         "cannot tell where lib%s." LIBRARY_SUFFIX " would be", name);
    int n =
        snprintf(path, sizeof path, "%.*s/lib%s." LIBRARY_SUFFIX, (int)(slash - self), self, name);
    if (n < 0 || (size_t)n >= sizeof path || access(path, R_OK) != 0)
        return bitm_fail(err, BITM_UNSUPPORTED,
                         "lib%s." LIBRARY_SUFFIX " is not beside the library of bitm", name);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return bitm_fail(err, BITM_UNSUPPORTED, "%s", dlerror());
    *found = dlsym(library, symbol);
    if (*found == NULL) return bitm_fail(err, BITM_UNSUPPORTED, "%s: no %s", path, symbol);
    return BITM_OK;
}

static void *thread_main(void *argument)
{
    bitm_thread *thread = argument;
    thread->run(thread->context);
    return NULL;
}

bool bitm_os_thread_start(bitm_thread *thread)
{
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return false;
    (void)pthread_attr_setstacksize(&attributes, BITM_OS_STACK_BYTES);
    bool started =
        pthread_create((pthread_t *)(void *)thread->storage, &attributes, thread_main, thread) == 0;
    (void)pthread_attr_destroy(&attributes);
    return started;
}

void bitm_os_thread_join(bitm_thread *thread)
{
    (void)pthread_join(*(pthread_t *)(void *)thread->storage, NULL);
}

bool bitm_os_mutex_init(bitm_mutex *mutex)
{
    return pthread_mutex_init((pthread_mutex_t *)(void *)mutex->storage, NULL) == 0;
}

void bitm_os_mutex_destroy(bitm_mutex *mutex)
{
    (void)pthread_mutex_destroy((pthread_mutex_t *)(void *)mutex->storage);
}

void bitm_os_mutex_lock(bitm_mutex *mutex)
{
    (void)pthread_mutex_lock((pthread_mutex_t *)(void *)mutex->storage);
}

void bitm_os_mutex_unlock(bitm_mutex *mutex)
{
    (void)pthread_mutex_unlock((pthread_mutex_t *)(void *)mutex->storage);
}

bool bitm_os_condition_init(bitm_condition *condition)
{
    return pthread_cond_init((pthread_cond_t *)(void *)condition->storage, NULL) == 0;
}

void bitm_os_condition_destroy(bitm_condition *condition)
{
    (void)pthread_cond_destroy((pthread_cond_t *)(void *)condition->storage);
}

void bitm_os_condition_wait(bitm_condition *condition, bitm_mutex *mutex)
{
    (void)pthread_cond_wait((pthread_cond_t *)(void *)condition->storage,
                            (pthread_mutex_t *)(void *)mutex->storage);
}

void bitm_os_condition_broadcast(bitm_condition *condition)
{
    (void)pthread_cond_broadcast((pthread_cond_t *)(void *)condition->storage);
}

#endif
