// What lies in the clusters of a tree, as a terminal summary and as a picture: nested boxes (treemap), a box per cluster of levels 1 and 2,
// its area the number of tokens, its label the words most typical of it. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/bank/cluster_tree.h"
#include "common/corpus/packer.h"

namespace membank {

struct ClusterContents {
  uint64_t windows = 0, tokens = 0;
  std::vector<std::string> words;   // most typical first, or the titles of a few titled documents; levels 1 and 2 only
};

struct TreeContents {
  uint32_t fan_out = 0, depth = 0;
  std::string fingerprint;
  uint64_t windows = 0, tokens = 0;
  std::vector<std::vector<ClusterContents>> levels;  // [level - 1][cluster]
};

// `texts[i]` is the text of `windows[i]`, `titles[i]` the title of its document (may be empty).
TreeContents CountContents(const ClusterTree& tree, const std::vector<Window>& windows, const std::vector<std::string>& texts,
                           const std::vector<std::string>& titles);

std::string DrawTree(const TreeContents& contents);  // SVG
std::string Summary(const TreeContents& contents);   // a few lines, each ending with a newline

}  // namespace membank
