# Compiler flags that every target shares.
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

# Checks stay on in Release: LS_CHECK is not assert(), so NDEBUG only drops LS_DCHECK. Sanitizer
# builds keep LS_DCHECK and the bounds checks of libstdc++, at -O1: GCC compiles them in two thirds
# of the time, and CI waits for that longer than for the tests.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
if(LSERVE_SANITIZE)
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -D_GLIBCXX_ASSERTIONS")
endif()

# Options for C++ only: nvcc spells its own (lserve_cuda.cmake).
function(lserve_cxx_options)
  foreach(option IN LISTS ARGN)
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:${option}>)
  endforeach()
endfunction()

# -ffp-contract=off: a multiply and an add are fused only where the code says fma, so that the
# scalar reference means the same on every compiler and every instruction set.
lserve_cxx_options(-ffp-contract=off -fno-math-errno)
lserve_cxx_options(-Wall -Wextra -Wshadow -Wconversion -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # False positives of GCC 12 with std::vector and std::variant at -O2.
  lserve_cxx_options(-Wno-maybe-uninitialized -Wno-array-bounds -Wno-stringop-overflow
                     -Wno-stringop-overread -Wno-restrict -Wno-dangling-pointer)
endif()

if(LSERVE_SANITIZE)
  lserve_cxx_options(-fsanitize=${LSERVE_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${LSERVE_SANITIZE})
  if(LSERVE_SANITIZE MATCHES "undefined")
    lserve_cxx_options(-fno-sanitize-recover=all)
  endif()
endif()

if(LSERVE_BUILD_FUZZERS)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

# For programs that are built here and run on a GPU machine without our Debian packages.
option(LSERVE_STATIC "Link every library but the system's and CUDA's statically" OFF)
if(LSERVE_STATIC)
  set(CMAKE_FIND_LIBRARY_SUFFIXES .a .so)
  set(Boost_USE_STATIC_LIBS ON)
  add_link_options(-static-libgcc -static-libstdc++ -Wl,--as-needed)
endif()

find_program(LSERVE_CCACHE ccache)
if(LSERVE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${LSERVE_CCACHE})
endif()
