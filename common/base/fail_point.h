// Named places at which a test makes a process die as by kill -9: MEMBANK_FAIL_POINT("checkpoint.commit.marked"). Nothing that ships has
// them: the macro is empty unless MEMBANK_WITH_FAIL_POINTS is defined, which only the memory server of tests/integration/faults is built
// with. There the environment says which place strikes, and at which passage: MEMBANK_FAIL_POINT=checkpoint.commit.marked@3.
#pragma once

#ifdef MEMBANK_WITH_FAIL_POINTS

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <string_view>

namespace membank {

inline void PassFailPoint(std::string_view name) {
  struct Wanted {
    std::string_view name;
    int passages = 1;
  };
  static const Wanted wanted = [] {
    const char* text = std::getenv("MEMBANK_FAIL_POINT");
    Wanted parsed{text == nullptr ? "" : text};
    if (const size_t at = parsed.name.find('@'); at != std::string_view::npos) {
      parsed.passages = std::atoi(parsed.name.data() + at + 1);
      parsed.name = parsed.name.substr(0, at);
    }
    return parsed;
  }();
  static std::atomic<int> passed{0};
  if (name == wanted.name && ++passed >= wanted.passages) std::raise(SIGKILL);
}

}  // namespace membank

#define MEMBANK_FAIL_POINT(name) ::membank::PassFailPoint(name)
#else
#define MEMBANK_FAIL_POINT(name) static_cast<void>(0)
#endif
