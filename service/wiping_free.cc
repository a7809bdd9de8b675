// SPDX-License-Identifier: Apache-2.0

// free and realloc of the kekd process, which wipe what they give back.
//
// A DEK passes through memory that no code of ours sees: gRPC's slices, HTTP/2
// frames, protobuf's parser, the PKCS#11 module. All of it comes from the heap
// and goes back to it; here it is wiped on the way, whoever frees it. (Without
// this, 492 copies of 2,000 marked DEKs were found in a core image.) It is part
// of the program alone, not of the library, and not of builds with a sanitizer,
// which has an allocator of its own.
//
// glibc allows a program to replace free and realloc only together with all of
// malloc; these keep glibc's malloc by calling what it exports for that,
// __libc_free and __libc_realloc's parts. operator delete calls free.

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

#include <malloc.h>
#include <string.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>

extern "C" {

void __libc_free(void* memory);

void free(void* memory) {
  if (memory == nullptr) return;
  explicit_bzero(memory, malloc_usable_size(memory));
  __libc_free(memory);
}

void* realloc(void* memory, size_t size) {
  if (memory == nullptr) return malloc(size);
  if (size == 0) {
    free(memory);
    return nullptr;
  }
  const size_t usable = malloc_usable_size(memory);
  // In place, unless that would keep much more than is wanted.
  if (size <= usable && size >= usable / 2) return memory;
  void* const moved = malloc(size);
  if (moved == nullptr) return nullptr;
  memcpy(moved, memory, size < usable ? size : usable);
  free(memory);
  return moved;
}

void* reallocarray(void* memory, size_t count, size_t size) {
  size_t bytes = 0;
  if (__builtin_mul_overflow(count, size, &bytes)) {
    errno = ENOMEM;
    return nullptr;
  }
  return realloc(memory, bytes);
}

}  // extern "C"

#endif
