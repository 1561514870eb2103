# One static library a second-level folder, so that the arrows between the folders hold at link time.

set(MOESAIC_WARNINGS -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Werror)

add_library(moesaic_options INTERFACE)
target_compile_options(moesaic_options INTERFACE ${MOESAIC_WARNINGS})
target_include_directories(moesaic_options INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
target_link_options(moesaic_options INTERFACE -fuse-ld=lld)
if(CMAKE_CXX_COMPILER_LAUNCHER MATCHES ccache)
  target_compile_options(moesaic_options INTERFACE -fpch-preprocess)
endif()
if(MOESAIC_SANITIZE)
  target_compile_options(moesaic_options INTERFACE
    -fsanitize=${MOESAIC_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
  target_link_options(moesaic_options INTERFACE -fsanitize=${MOESAIC_SANITIZE})
endif()
if(MOESAIC_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "MOESAIC_FUZZ needs clang: configure with CC=clang-14 CXX=clang++-14")
  endif()
  target_compile_options(moesaic_options INTERFACE
    -fsanitize=fuzzer-no-link,address,undefined -fno-omit-frame-pointer
    -fno-sanitize-recover=undefined)
  target_link_options(moesaic_options INTERFACE -fsanitize=address,undefined)
endif()

# The precompiled header of every file that uses ATen.
file(WRITE ${CMAKE_BINARY_DIR}/aten_pch.cc "")
add_library(moesaic_aten_pch STATIC ${CMAKE_BINARY_DIR}/aten_pch.cc)
target_link_libraries(moesaic_aten_pch PUBLIC moesaic_options moesaic_torch)
target_precompile_headers(moesaic_aten_pch PRIVATE
  <ATen/ATen.h> <algorithm> <cstdint> <functional> <map> <memory> <optional> <span> <string>
  <unordered_map> <utility> <vector>)

# moesaic_library(NAME SRCS files... [DEPS targets...] [ATEN]): a static library. ATEN: its files
# use LibTorch and share the precompiled header.
function(moesaic_library name)
  cmake_parse_arguments(arg "ATEN" "" "SRCS;DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SRCS})
  target_link_libraries(${name} PUBLIC moesaic_options ${arg_DEPS})
  if(arg_ATEN)
    target_link_libraries(${name} PUBLIC moesaic_torch)
    target_precompile_headers(${name} REUSE_FROM moesaic_aten_pch)
  endif()
endfunction()

# An executable whose files use LibTorch. The precompiled header is of -fPIC, as the libraries are.
function(moesaic_use_aten executable)
  target_link_libraries(${executable} PRIVATE moesaic_torch)
  set_target_properties(${executable} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(${executable} PRIVATE -fPIC)
  target_precompile_headers(${executable} REUSE_FROM moesaic_aten_pch)
endfunction()

if(MOESAIC_SANITIZE)
  add_custom_target(sanitized_tests)
endif()

# Adds the label sanitize to the list variable named `list`, and `target` to sanitized_tests, when one of
# the sanitizers given is the one of this build.
function(moesaic_sanitize_label target list)
  foreach(sanitizer IN LISTS ARGN)
    if(MOESAIC_SANITIZE MATCHES ${sanitizer})
      add_dependencies(sanitized_tests ${target})
      set(${list} "${${list}};sanitize" PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

# moesaic_test(NAME SRCS files... DEPS targets... [ATEN] [LABELS fast|slow|fault|e2e|peers]
#              [ENV NAME=VALUE...] [TIMEOUT seconds] [SANITIZERS address thread]): a GoogleTest
# program, one CTest entry. SANITIZERS: the sanitizer presets that build it (target
# sanitized_tests) and run it (label sanitize).
function(moesaic_test name)
  cmake_parse_arguments(arg "ATEN" "TIMEOUT" "SRCS;DEPS;LABELS;ENV;SANITIZERS" ${ARGN})
  add_executable(${name} ${arg_SRCS})
  target_link_libraries(${name} PRIVATE moesaic_options ${arg_DEPS} GTest::gmock GTest::gtest_main)
  if(arg_ATEN)
    moesaic_use_aten(${name})
  endif()
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  if(NOT arg_LABELS)
    set(arg_LABELS fast)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  moesaic_sanitize_label(${name} arg_LABELS ${arg_SANITIZERS})
  if(MOESAIC_SANITIZE MATCHES thread)
    list(APPEND arg_ENV "TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp")
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "${arg_ENV}")
endfunction()

# moesaic_fuzzer(NAME SRCS files... DEPS targets...): the sources define LLVMFuzzerTestOneInput.
# Always: NAME_replay, a fast test that feeds it every file of tests/fuzz/corpus/NAME. With
# -DMOESAIC_FUZZ=ON also the libFuzzer program NAME and a slow test that runs it for 20 seconds; what
# breaks it is left in the build folder under fuzz/found/NAME.
function(moesaic_fuzzer name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS" ${ARGN})
  set(corpus ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name})
  add_executable(${name}_replay ${arg_SRCS} ${CMAKE_SOURCE_DIR}/tests/fuzz/replay_main.cc)
  target_link_libraries(${name}_replay PRIVATE moesaic_options ${arg_DEPS})
  set_target_properties(${name}_replay PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name}_replay COMMAND ${name}_replay ${corpus})
  set(labels fast)
  moesaic_sanitize_label(${name}_replay labels address)
  set_tests_properties(${name}_replay PROPERTIES LABELS "${labels}" TIMEOUT 60)
  if(MOESAIC_FUZZ)
    add_executable(${name} ${arg_SRCS})
    target_link_libraries(${name} PRIVATE moesaic_options ${arg_DEPS})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
    set(found ${CMAKE_BINARY_DIR}/fuzz/found/${name})
    file(MAKE_DIRECTORY ${found})
    add_test(NAME ${name} COMMAND ${name} -max_total_time=20 -artifact_prefix=${found}/ ${found}
      ${corpus})
    set_tests_properties(${name} PROPERTIES LABELS slow TIMEOUT 60)
  endif()
endfunction()
