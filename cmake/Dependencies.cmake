# Every library from outside, as an imported target. LibTorch is linked through targets of our own:
# TorchConfig.cmake wants all of CUDA, and torch's include folder carries its own fmt and protobuf
# headers, so it must come after the system's (-idirafter).
find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(fmt CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(GTest CONFIG REQUIRED)
find_package(yaml-cpp CONFIG REQUIRED)
find_package(CLI11 CONFIG QUIET)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(SQLite3 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(MPI_C REQUIRED IMPORTED_TARGET ompi)
find_library(DNNL_LIBRARY dnnl REQUIRED)

set(MOESAIC_DEPS_DIR ${CMAKE_SOURCE_DIR}/.deps CACHE PATH "What tools/bootstrap.sh unpacked")
if(NOT EXISTS ${MOESAIC_DEPS_DIR}/torch/lib/libtorch_cpu.so)
  message(FATAL_ERROR "LibTorch is not in ${MOESAIC_DEPS_DIR}: run tools/bootstrap.sh first")
endif()
set(TORCH_DIR ${MOESAIC_DEPS_DIR}/torch)
add_library(moesaic_torch INTERFACE)
target_compile_options(moesaic_torch INTERFACE
  "SHELL:-idirafter ${TORCH_DIR}/include"
  "SHELL:-idirafter ${TORCH_DIR}/include/torch/csrc/api/include")
target_link_libraries(moesaic_torch INTERFACE
  ${TORCH_DIR}/lib/libtorch_cpu.so ${TORCH_DIR}/lib/libc10.so)
target_link_options(moesaic_torch INTERFACE
  "LINKER:-rpath-link,${MOESAIC_DEPS_DIR}/nvidia/cu13/lib"
  "LINKER:-rpath,${TORCH_DIR}/lib" "LINKER:-rpath,${MOESAIC_DEPS_DIR}/nvidia/cu13/lib"
  "LINKER:--disable-new-dtags")

add_library(moesaic_sentencepiece INTERFACE)
target_include_directories(moesaic_sentencepiece SYSTEM INTERFACE
  ${MOESAIC_DEPS_DIR}/sentencepiece/include)
target_link_libraries(moesaic_sentencepiece INTERFACE
  ${MOESAIC_DEPS_DIR}/sentencepiece/lib/libsentencepiece_train.a
  ${MOESAIC_DEPS_DIR}/sentencepiece/lib/libsentencepiece.a
  protobuf::libprotobuf-lite protobuf::libprotobuf Threads::Threads)

add_library(moesaic_mpi INTERFACE)
target_compile_definitions(moesaic_mpi INTERFACE OMPI_SKIP_MPICXX)
target_link_libraries(moesaic_mpi INTERFACE PkgConfig::MPI_C)
