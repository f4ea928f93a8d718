# Toolchain file of zig, whose one package (pip install ziglang) brings a C compiler and the C
# libraries of all targets:
#
#   cmake -S native -B build/pi --toolchain native/cmake/zig.cmake \
#         -DBITM_ZIG_TARGET=aarch64-linux-musl
#
# BITM_ZIG_TARGET  what zig calls -target; glibc targets end with the oldest version that is to run
#                  the result: aarch64-linux-gnu.2.17
# BITM_ZIG_CPU     what zig calls -mcpu: the least CPU that is to run the result (default: zig's, and
#                  for 32-bit ARM that of Debian, without NEON: kernels for it are chosen at run time)
# BITM_ZIG_CACHE   where zig keeps what it has compiled, C libraries of targets among it
#
# CMakePresets.json has a preset for each target that is tested.

set(BITM_ZIG_CACHE "${CMAKE_BINARY_DIR}/zig" CACHE PATH "Folder of zig's caches")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES BITM_ZIG_TARGET BITM_ZIG_CPU BITM_ZIG_CACHE)

# ---- The target, in CMake's words ----

if(NOT BITM_ZIG_TARGET MATCHES "^([a-z0-9_]+)-([a-z]+)(-[a-z]+)?")
  message(FATAL_ERROR "BITM_ZIG_TARGET is '${BITM_ZIG_TARGET}', expected for instance aarch64-linux-musl")
endif()
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
if(CMAKE_MATCH_2 STREQUAL "windows")
  set(CMAKE_SYSTEM_NAME Windows)
elseif(CMAKE_MATCH_2 STREQUAL "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()

if(NOT BITM_ZIG_CPU AND CMAKE_SYSTEM_PROCESSOR STREQUAL "arm")
  set(BITM_ZIG_CPU generic+v7a+vfp3d16-d32-neon)
endif()

# ---- Programs ----

# The script that pip installs starts Python each time; what it starts is asked of Python once.
find_program(BITM_ZIG_PYTHON NAMES python python3)
if(BITM_ZIG_PYTHON)
  execute_process(
    COMMAND ${BITM_ZIG_PYTHON} -c "import os, ziglang; print(os.path.dirname(ziglang.__file__))"
    OUTPUT_VARIABLE BITM_ZIG_PACKAGE
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_program(BITM_ZIG NAMES zig HINTS "${BITM_ZIG_PACKAGE}")
if(NOT BITM_ZIG)
  message(FATAL_ERROR "zig is not found: pip install ziglang")
endif()

# CMake wants a program of each kind by itself, and zig writes into the home folder unless it is told
# otherwise.  It compiles the target's C library when it first links, for musl a minute of work, once
# for each CPU, with and without -O and -s: so every link has both.  It also has its own names for the
# instruction sets that isa.cmake gives as gcc does.
set(BITM_ZIG_PROGRAMS "${CMAKE_BINARY_DIR}/zig-programs")
file(WRITE "${BITM_ZIG_PROGRAMS}/cc" "#!/bin/sh
export ZIG_GLOBAL_CACHE_DIR='${BITM_ZIG_CACHE}' ZIG_LOCAL_CACHE_DIR='${BITM_ZIG_CACHE}'
cpu=${BITM_ZIG_CPU} strip=-s
for word; do
  shift
  case $word in
    -march=armv*) # -march=armv8.2-a+dotprod is -mcpu=generic+v8_2a+dotprod
      cpu=generic+$(echo \"\${word#-march=arm}\" | sed 's/^\\(v[0-9]*\\)[.]\\([0-9]*\\)-a/\\1_\\2a/; s/^\\(v[0-9]*\\)-a/\\1a/')
      ;;
    -mfpu=neon-vfpv4) cpu=generic+v7a+neon+vfp4 ;;
    -c | -S | -E) strip= && set -- \"$@\" $word ;;
    *) set -- \"$@\" \"$word\" ;;
  esac
done
exec '${BITM_ZIG}' cc -O2 \$strip -target ${BITM_ZIG_TARGET} \${cpu:+-mcpu=$cpu} \"$@\"
")
foreach(program ar ranlib rc)
  file(WRITE "${BITM_ZIG_PROGRAMS}/${program}" "#!/bin/sh
export ZIG_GLOBAL_CACHE_DIR='${BITM_ZIG_CACHE}' ZIG_LOCAL_CACHE_DIR='${BITM_ZIG_CACHE}'
exec '${BITM_ZIG}' ${program} \"$@\"
")
endforeach()
execute_process(COMMAND chmod +x cc ar ranlib rc WORKING_DIRECTORY "${BITM_ZIG_PROGRAMS}")
set(CMAKE_C_COMPILER "${BITM_ZIG_PROGRAMS}/cc")
set(CMAKE_AR "${BITM_ZIG_PROGRAMS}/ar" CACHE FILEPATH "")
set(CMAKE_RANLIB "${BITM_ZIG_PROGRAMS}/ranlib" CACHE FILEPATH "")
set(CMAKE_RC_COMPILER "${BITM_ZIG_PROGRAMS}/rc" CACHE FILEPATH "")

# Nothing of this machine is the target's.
foreach(kind LIBRARY INCLUDE PACKAGE)
  set(CMAKE_FIND_ROOT_PATH_MODE_${kind} ONLY)
endforeach()
# Trials of flags link nothing: zig would compile the C library for each.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

# ---- Tests run in an emulator, where there is one ----

if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND NOT CMAKE_SYSTEM_PROCESSOR STREQUAL CMAKE_HOST_SYSTEM_PROCESSOR)
  find_program(BITM_QEMU NAMES qemu-${CMAKE_SYSTEM_PROCESSOR}-static qemu-${CMAKE_SYSTEM_PROCESSOR})
  if(BITM_QEMU)
    # Debian keeps other machines' glibc in a folder of the target's name; static programs need none.
    string(REGEX REPLACE "[.][0-9.]+$" "" BITM_ZIG_PLAIN_TARGET "${BITM_ZIG_TARGET}")
    set(CMAKE_CROSSCOMPILING_EMULATOR "${BITM_QEMU};-L;/usr/${BITM_ZIG_PLAIN_TARGET}")
  endif()
endif()
