#include "cli/tree_picture.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "fmt/format.h"

namespace membank {
namespace {

constexpr uint32_t kDrawnLevels = 2;
constexpr size_t kWords = 6;
constexpr size_t kMinWordBytes = 4;
constexpr double kWidth = 1600, kHeight = 1040, kHeader = 40;

bool IsWordByte(unsigned char c) { return std::isalpha(c) || c >= 0x80; }

// The distinct lower-case words of a text.
std::unordered_set<std::string> WordsOf(std::string_view text) {
  std::unordered_set<std::string> words;
  for (size_t i = 0; i < text.size();) {
    size_t end = i;
    while (end < text.size() && IsWordByte(text[end])) ++end;
    if (end - i >= kMinWordBytes) {
      std::string word(text.substr(i, end - i));
      for (char& c : word) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      words.insert(std::move(word));
    }
    i = end + 1;
  }
  return words;
}

using WordCounts = std::unordered_map<std::string, uint32_t>;  // word -> windows that hold it

// Words that many of the cluster's windows hold and few others: share inside times how much likelier inside than anywhere.
std::vector<std::string> TypicalWords(const WordCounts& inside, uint64_t windows, const WordCounts& everywhere, uint64_t all_windows) {
  std::vector<std::pair<double, std::string>> scored;
  for (const auto& [word, count] : inside) {
    if (count < 2 && windows > 2) continue;
    const double share = static_cast<double>(count) / windows, usual = static_cast<double>(everywhere.at(word)) / all_windows;
    if (share > usual) scored.emplace_back(-share * std::log(share / usual), word);
  }
  const size_t top = std::min(kWords, scored.size());
  std::partial_sort(scored.begin(), scored.begin() + top, scored.end());
  std::vector<std::string> words;
  for (size_t i = 0; i < top; ++i) words.push_back(scored[i].second);
  return words;
}

struct Box {
  double x = 0, y = 0, width = 0, height = 0;
  Box Inset(double side, double top) const {
    return {x + side, y + top, std::max(0.0, width - 2 * side), std::max(0.0, height - top - side)};
  }
};

// The worst ratio of sides in a row of boxes along `side`.
double WorstRatio(const std::vector<double>& row, double side) {
  const double sum = std::accumulate(row.begin(), row.end(), 0.0);
  double worst = 0;
  for (const double area : row) worst = std::max({worst, side * side * area / (sum * sum), sum * sum / (side * side * area)});
  return worst;
}

// Squarified treemap (Bruls, Huizing, van Wijk 2000): boxes for `areas` (descending, summing to the box's area) inside `box`.
std::vector<Box> Squarify(const std::vector<double>& areas, Box box) {
  std::vector<Box> boxes;
  for (size_t first = 0; first < areas.size();) {
    const double side = std::min(box.width, box.height);
    std::vector<double> row = {areas[first]};
    while (first + row.size() < areas.size()) {
      std::vector<double> longer = row;
      longer.push_back(areas[first + row.size()]);
      if (WorstRatio(longer, side) > WorstRatio(row, side)) break;
      row = std::move(longer);
    }
    const double sum = std::accumulate(row.begin(), row.end(), 0.0), thickness = side > 0 ? sum / side : 0;
    double along = 0;
    for (const double area : row) {
      const double length = thickness > 0 ? area / thickness : 0;
      if (box.width >= box.height) boxes.push_back({box.x, box.y + along, thickness, length});
      else boxes.push_back({box.x + along, box.y, length, thickness});
      along += length;
    }
    if (box.width >= box.height) box.x += thickness, box.width -= thickness;
    else box.y += thickness, box.height -= thickness;
    first += row.size();
  }
  return boxes;
}

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') out += "&amp;";
    else if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '"') out += "&quot;";
    else out += c;
  }
  return out;
}

size_t Characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

bool Fits(std::string_view text, double width, double size) { return Characters(text) * size * 0.56 <= width; }

void Text(std::string& svg, double x, double y, double size, std::string_view text, std::string_view extra = "") {
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"{:.1f}\" {}>{}</text>\n", x, y, size, extra, Escape(text));
}

// As many words as fit one line of `width`.
std::string Line(const std::vector<std::string>& words, double width, double size) {
  std::string line;
  for (const std::string& word : words) {
    const std::string longer = line.empty() ? word : line + ", " + word;
    if (!Fits(longer, width, size)) break;
    line = longer;
  }
  return line;
}

std::vector<uint32_t> BySize(const std::vector<ClusterContents>& clusters, uint32_t first, uint32_t count) {
  std::vector<uint32_t> order;
  for (uint32_t cluster = first; cluster < first + count; ++cluster) {
    if (clusters[cluster].tokens > 0) order.push_back(cluster);
  }
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return clusters[a].tokens > clusters[b].tokens; });
  return order;
}

std::vector<Box> Layout(const std::vector<ClusterContents>& clusters, const std::vector<uint32_t>& order, const Box& box) {
  double sum = 0;
  for (const uint32_t cluster : order) sum += clusters[cluster].tokens;
  std::vector<double> areas;
  for (const uint32_t cluster : order) areas.push_back(clusters[cluster].tokens / sum * box.width * box.height);
  return Squarify(areas, box);
}

void DrawBox(std::string& svg, const Box& box, const std::string& fill, const std::string& title) {
  svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"3\" fill=\"{}\"><title>{}</title></rect>\n", box.x, box.y,
                     box.width, box.height, fill, Escape(title));
}

std::string Describe(const std::string& path, const ClusterContents& contents) {
  return fmt::format("{}: {} windows, {} tokens; {}", path, contents.windows, contents.tokens, fmt::join(contents.words, ", "));
}

void DrawLeafBox(std::string& svg, const Box& box, const std::string& path, const ClusterContents& contents, double hue) {
  DrawBox(svg, box, fmt::format("hsl({:.0f}, 45%, 92%)", hue), Describe(path, contents));
  const double size = 11, width = box.width - 8;
  double y = box.y + size + 3;
  const std::string head = fmt::format("{} · {}", path, contents.windows);
  if (y > box.y + box.height - 2 || !Fits(head, width, size)) return;
  Text(svg, box.x + 4, y, size, head, "fill=\"#777\"");
  for (const std::string& word : contents.words) {
    y += size + 2;
    if (y > box.y + box.height - 3) break;
    if (Fits(word, width, size)) Text(svg, box.x + 4, y, size, word);
    else y -= size + 2;
  }
}

}  // namespace

TreeContents CountContents(const ClusterTree& tree, const std::vector<Window>& windows, const std::vector<std::string>& texts,
                           const std::vector<std::string>& titles) {
  TreeContents contents{tree.fan_out(), tree.depth(), tree.Fingerprint()};
  const uint32_t drawn = std::min(kDrawnLevels, tree.depth());
  std::vector<std::vector<WordCounts>> words(drawn);
  WordCounts everywhere;
  for (uint32_t level = 1; level <= tree.depth(); ++level) {
    contents.levels.emplace_back(ClusterCount(tree.fan_out(), level));
    if (level <= drawn) words[level - 1].resize(ClusterCount(tree.fan_out(), level));
  }
  for (size_t i = 0; i < windows.size(); ++i) {
    const BlockPath path{MemoryMode::kFetched, tree.depth(), windows[i].leaf};
    ++contents.windows;
    contents.tokens += windows[i].tokens.size();
    for (uint32_t level = 1; level <= tree.depth(); ++level) {
      ClusterContents& cluster = contents.levels[level - 1][ClusterAt(path, tree.fan_out(), level)];
      ++cluster.windows;
      cluster.tokens += windows[i].tokens.size();
    }
    for (const std::string& word : WordsOf(texts[i])) {
      ++everywhere[word];
      for (uint32_t level = 1; level <= drawn; ++level) ++words[level - 1][ClusterAt(path, tree.fan_out(), level)][word];
    }
  }
  // A few documents are best described by their titles.
  for (size_t i = 0; i < windows.size(); ++i) {
    ClusterContents& cluster = contents.levels[drawn - 1][ClusterAt({MemoryMode::kFetched, tree.depth(), windows[i].leaf}, tree.fan_out(), drawn)];
    if (cluster.windows <= kWords && !titles[i].empty()) cluster.words.push_back(titles[i]);
  }
  for (uint32_t level = 1; level <= drawn; ++level) {
    for (uint32_t cluster = 0; cluster < words[level - 1].size(); ++cluster) {
      ClusterContents& target = contents.levels[level - 1][cluster];
      if (target.words.empty()) target.words = TypicalWords(words[level - 1][cluster], target.windows, everywhere, contents.windows);
    }
  }
  return contents;
}

std::string DrawTree(const TreeContents& contents) {
  const uint32_t k = contents.fan_out;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" font-family=\"Helvetica, Arial, sans-serif\" "
      "fill=\"#222\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n",
      kWidth, kHeight);
  Text(svg, 12, 26, 18, fmt::format("Cluster tree: fan-out {}, depth {}", k, contents.depth), "font-weight=\"bold\"");
  Text(svg, 340, 26, 13,
       fmt::format("{} windows, {} tokens. A box is a cluster, its area the tokens in it; path · windows, then its most typical words.",
                   contents.windows, contents.tokens),
       "fill=\"#555\"");
  const std::vector<ClusterContents>& top = contents.levels[0];
  const std::vector<uint32_t> order = BySize(top, 0, k);
  const std::vector<Box> boxes = Layout(top, order, {8, kHeader, kWidth - 16, kHeight - kHeader - 8});
  for (size_t i = 0; i < order.size(); ++i) {
    const uint32_t cluster = order[i];
    const double hue = std::fmod(cluster * 360.0 / k + 200, 360);
    const Box box = boxes[i].Inset(2, 2);
    DrawBox(svg, box, fmt::format("hsl({:.0f}, 45%, 78%)", hue), Describe(std::to_string(cluster), top[cluster]));
    const std::string head = fmt::format("{} · {} · ", cluster, top[cluster].windows);
    const double room = box.width - 12 - Characters(head) * 14 * 0.56;
    Text(svg, box.x + 6, box.y + 17, 14, head + Line(top[cluster].words, room, 14), "font-weight=\"bold\"");
    if (contents.depth < 2) continue;
    const std::vector<ClusterContents>& below = contents.levels[1];
    const std::vector<uint32_t> children = BySize(below, cluster * k, k);
    const std::vector<Box> inner = Layout(below, children, box.Inset(4, 24));
    for (size_t j = 0; j < children.size(); ++j) {
      DrawLeafBox(svg, inner[j].Inset(1.5, 1.5), fmt::format("{}.{}", cluster, children[j] % k), below[children[j]], hue);
    }
  }
  return svg + "</svg>\n";
}

std::string Summary(const TreeContents& contents) {
  std::string text = fmt::format("tree: fan-out {}, depth {}, fingerprint {}\n", contents.fan_out, contents.depth, contents.fingerprint);
  for (uint32_t level = 1; level <= contents.depth; ++level) {
    const std::vector<ClusterContents>& clusters = contents.levels[level - 1];
    uint64_t used = 0, largest = 0;
    for (const ClusterContents& cluster : clusters) {
      used += cluster.windows > 0;
      largest = std::max(largest, cluster.windows);
    }
    text += fmt::format("  level {}: {} of {} clusters used, largest share {:.3f} (even: {:.3f})\n", level, used, clusters.size(),
                        static_cast<double>(largest) / contents.windows, 1.0 / clusters.size());
  }
  for (const uint32_t cluster : BySize(contents.levels[0], 0, contents.fan_out)) {
    const ClusterContents& row = contents.levels[0][cluster];
    text += fmt::format("  {:>4}  {:>7} windows  {}\n", cluster, row.windows, fmt::join(row.words, ", "));
  }
  return text;
}

}  // namespace membank
