// The arithmetic of `membank eval`: what counts as a right answer, what "another path" is, and intervals. Pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/bank/block.h"

namespace membank {

// Whether `text` begins with `answer` (after white space, letter case aside) and the word or number ends there: "72." answers 72, while "720",
// "72.5" and "7" do not.
bool BeginsWithAnswer(std::string_view text, std::string_view answer);

// For each path one that belongs to other texts, from another level-1 subtree where there is one: the distinct paths of `paths` in
// order, half way round. So it was learned too, and the control differs only in the topic. With one single path: half way round all leaves.
std::vector<BlockPath> OtherPaths(const std::vector<BlockPath>& paths, uint32_t fan_out);

struct Interval {
  double mean = 0, low = 0, high = 0;  // of a ratio of sums
};

// sum(numerators) / sum(denominators) with the 95 % bootstrap interval over the items (2,000 resamples, fixed seed).
Interval BootstrapRatio(const std::vector<double>& numerators, const std::vector<double>& denominators);

}  // namespace membank
