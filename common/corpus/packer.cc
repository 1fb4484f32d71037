#include "common/corpus/packer.h"

#include <algorithm>
#include <map>
#include <random>
#include <utility>

namespace membank {
namespace {

// Fisher-Yates on mt19937_64, whose numbers the standard fixes; std::shuffle's use of them it does not.
template <typename T>
void Shuffle(std::vector<T>& values, std::mt19937_64& random) {
  for (size_t i = values.size(); i > 1; --i) {
    const auto j = static_cast<size_t>(static_cast<unsigned __int128>(random()) * i >> 64);
    std::swap(values[i - 1], values[j]);
  }
}

void AppendWindow(PackedSequence& sequence, const Window& window) {
  sequence.tokens.insert(sequence.tokens.end(), window.tokens.begin(), window.tokens.end());
  sequence.document_ends.push_back(static_cast<uint32_t>(sequence.tokens.size()));
}

}  // namespace

std::vector<WindowRange> SplitIntoWindows(uint32_t tokens, uint32_t sequence_length) {
  std::vector<WindowRange> windows;
  uint32_t begin = 0;
  while (begin < tokens) {
    const uint32_t left = tokens - begin;
    uint32_t size = std::min(left, sequence_length);
    if (left > sequence_length && left - sequence_length < sequence_length / 2) size = (left + 1) / 2;
    windows.push_back({begin, begin + size});
    begin += size;
  }
  return windows;
}

std::vector<PackedSequence> PackWindows(std::vector<Window> windows, uint32_t sequence_length, uint64_t seed) {
  std::mt19937_64 random(seed);
  Shuffle(windows, random);
  std::stable_sort(windows.begin(), windows.end(), [](const Window& a, const Window& b) { return a.leaf < b.leaf; });
  std::vector<PackedSequence> sequences;
  std::multimap<size_t, size_t> open;  // free tokens -> sequence, of the current leaf
  for (size_t i = 0; i < windows.size(); ++i) {
    const Window& window = windows[i];
    if (i > 0 && window.leaf != windows[i - 1].leaf) open.clear();
    const auto fit = open.lower_bound(window.tokens.size());
    size_t target = sequences.size();
    size_t room = sequence_length;
    if (fit == open.end()) {
      sequences.push_back({window.leaf, {}, {}});
    } else {
      room = fit->first;
      target = fit->second;
      open.erase(fit);
    }
    AppendWindow(sequences[target], window);
    if (room > window.tokens.size()) open.emplace(room - window.tokens.size(), target);
  }
  Shuffle(sequences, random);
  return sequences;
}

}  // namespace membank
