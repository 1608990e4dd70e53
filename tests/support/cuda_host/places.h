// Where an address lies, for the words of an error: a line of code, or an element of an array.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

// What the sanitizers leave alone: what threads share with the scheduler, and the functions of races.h.
#define METRICSEG_UNWATCHED __attribute__((no_sanitize("thread", "alignment")))
#define METRICSEG_QUICK METRICSEG_UNWATCHED __attribute__((always_inline))
#define METRICSEG_CALLED METRICSEG_UNWATCHED __attribute__((noinline))  // so METRICSEG_CODE is where
#define METRICSEG_CODE __builtin_return_address(0)

extern "C" char __bss_start[] __attribute__((visibility("hidden")));  // static shared memory lies between these two
extern "C" char _end[] __attribute__((visibility("hidden")));

namespace cuda_host {

struct Array {
  uintptr_t begin, end;
  std::string name;
};
inline std::vector<Array> arrays;             // in global memory
inline uintptr_t shared = 0, shared_end = 0;  // dynamic shared memory of the block

inline void remember(const void* data, int64_t bytes, const std::string& name) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  arrays.push_back({begin, begin + bytes, name});
}

METRICSEG_QUICK inline bool is_static(uintptr_t at) {
  return at >= reinterpret_cast<uintptr_t>(__bss_start) && at < reinterpret_cast<uintptr_t>(_end);
}
METRICSEG_QUICK inline bool is_shared(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  return (at >= shared && at < shared_end) || is_static(at);
}

inline std::vector<std::string> lines_of(const std::string& command) {
  std::vector<std::string> lines;
  char line[4096];
  std::FILE* const output = popen(command.c_str(), "r");
  while (output != nullptr && std::fgets(line, sizeof(line), output) != nullptr) {
    lines.emplace_back(line, std::strcspn(line, "\n"));
  }
  if (output != nullptr) pclose(output);
  return lines;
}

// The address in the file of this module, and its path.
inline std::string in_module(const void* address, std::string& path) {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&lines_of), &info) == 0) return "";
  path = info.dli_fname;
  char text[32];
  std::snprintf(text, sizeof(text), "0x%zx", static_cast<const char*>(address) - static_cast<char*>(info.dli_fbase));
  return text;
}

// The line that called, or, if the code is a function's, its name: the innermost of ours that is inlined there.
inline std::string line_at(const void* code, bool function = false) {
  std::string path;
  const std::string offset = in_module(static_cast<const char*>(code) - !function, path);
  const auto lines = lines_of("addr2line -Cfie '" + path + "' " + offset + " 2>/dev/null");
  for (size_t i = 0; i + 1 < lines.size(); i += 2) {
    if (function) return lines[i];
    const std::string& line = lines[i + 1];
    if (line[0] == '?' || line.rfind("/usr/", 0) == 0) continue;
    return line.substr(0, line.find(' ')).substr(line.rfind('/') + 1);  // without a "(discriminator 3)"
  }
  return "an unknown line";
}

// The name of a static array, and its place.
inline std::string static_at(uintptr_t address) {
  std::string path;
  const auto at = std::stoull(in_module(reinterpret_cast<const void*>(address), path), nullptr, 16);
  for (const std::string& line : lines_of("nm -CSn --defined-only '" + path + "' 2>/dev/null")) {
    if (line.size() < 36 || line[33] != ' ') continue;  // address, size, kind and name, or no size
    const auto begin = std::stoull(line, nullptr, 16), size = std::stoull(line.substr(17), nullptr, 16);
    if (at >= begin && at < begin + size) return "byte " + std::to_string(at - begin) + " of " + line.substr(36);
  }
  return "of a static array";
}

inline std::string element_at(const void* address, unsigned size) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto of = [&](uintptr_t begin, const std::string& name) {
    return "element " + std::to_string((at - begin) / size) + " (" + std::to_string(size) + " bytes each) of " + name;
  };
  if (at >= shared && at < shared_end) return of(shared, "dynamic shared memory");
  if (is_static(at)) return static_at(at);
  for (auto array = arrays.rbegin(); array != arrays.rend(); ++array) {
    if (at >= array->begin && at < array->end) return of(array->begin, array->name);
  }
  return "in no array of the call";
}

// The first misaligned access of a launch.
inline std::string misaligned;

inline void report_misaligned(const std::string& what, const void* at, unsigned alignment, const std::string& line) {
  misaligned = what + " is misaligned: address " + std::to_string(reinterpret_cast<uintptr_t>(at)) +
               " is no multiple of " + std::to_string(alignment) + ", at " + line;
}

}  // namespace cuda_host
