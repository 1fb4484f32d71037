// The loop of byte-pair encoding: of all neighbours that can be merged those with the smallest rank, the leftmost of equals, are merged
// first. n log n in the number of symbols. Not thread-safe; kept between words so that memory is reused.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace membank {

struct Merge {
  int32_t rank;
  int32_t result;   // id
};

class MergeQueue {
 public:
  struct Symbol {
    int32_t id;
    int32_t begin, length;        // its part of the word
    int32_t previous, next;       // positions; -1 at the ends
  };

  void Clear() { symbols_.clear(); }
  void Add(int32_t id, int32_t begin, int32_t length) {
    const int32_t position = static_cast<int32_t>(symbols_.size());
    symbols_.push_back({id, begin, length, position - 1, -1});
    if (position > 0) symbols_[position - 1].next = position;
  }

  // `find(left, right)` gives a pointer to the Merge of two neighbours, or null.
  template <typename Find>
  void Run(const Find& find) {
    heap_.clear();
    for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols_.size()); ++i) Consider(i, find);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      const Candidate best = heap_.back();
      heap_.pop_back();
      Symbol& left = symbols_[best.position];
      // A symbol only grows, so the length tells whether this is still the pair that was considered.
      if (left.length == 0 || left.next < 0 || left.length + symbols_[left.next].length != best.length) continue;
      Symbol& right = symbols_[left.next];
      left.id = best.result;
      left.length = best.length;
      left.next = right.next;
      right.length = 0;
      if (left.next >= 0) symbols_[left.next].previous = best.position;
      if (left.previous >= 0) Consider(left.previous, find);
      Consider(best.position, find);
    }
  }

  // Calls `use` with each symbol that is left, in order.
  template <typename Use>
  void ForEach(const Use& use) const {
    for (int32_t i = symbols_.empty() ? -1 : 0; i >= 0; i = symbols_[i].next) use(symbols_[i]);
  }

 private:
  struct Candidate {
    int32_t rank, position, length, result;
    bool operator<(const Candidate& other) const {   // the smallest rank, then the leftmost, is on top of the heap
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };

  template <typename Find>
  void Consider(int32_t position, const Find& find) {
    const Symbol& left = symbols_[position];
    if (left.next < 0) return;
    const Symbol& right = symbols_[left.next];
    const Merge* merge = find(left, right);
    if (merge == nullptr) return;
    heap_.push_back({merge->rank, position, left.length + right.length, merge->result});
    std::push_heap(heap_.begin(), heap_.end());
  }

  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace membank
