#include "cli/eval_scoring.h"

#include <algorithm>
#include <cctype>
#include <random>
#include <set>

namespace membank {
namespace {

constexpr int kResamples = 2000;

bool IsSpace(char c) { return std::isspace(static_cast<unsigned char>(c)); }
bool IsDigit(char c) { return std::isdigit(static_cast<unsigned char>(c)); }
// Bytes of letters outside ASCII continue a word too.
bool IsWord(char c) { return std::isalnum(static_cast<unsigned char>(c)) || static_cast<unsigned char>(c) >= 0x80; }

std::string_view Trim(std::string_view text) {
  while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace

bool BeginsWithAnswer(std::string_view text, std::string_view answer) {
  text = Trim(text);
  answer = Trim(answer);
  if (answer.empty() || text.size() < answer.size()) return false;
  for (size_t i = 0; i < answer.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(text[i])) != std::tolower(static_cast<unsigned char>(answer[i]))) return false;
  }
  const std::string_view rest = text.substr(answer.size());
  if (rest.empty() || !IsWord(answer.back())) return true;
  if (IsWord(rest[0])) return false;
  const bool number_goes_on = IsDigit(answer.back()) && (rest[0] == '.' || rest[0] == ',') && rest.size() > 1 && IsDigit(rest[1]);
  return !number_goes_on;
}

std::vector<BlockPath> OtherPaths(const std::vector<BlockPath>& paths, uint32_t fan_out) {
  std::set<BlockPath> distinct_set(paths.begin(), paths.end());
  const std::vector<BlockPath> distinct(distinct_set.begin(), distinct_set.end());
  const auto other = [&](const BlockPath& path) {
    const size_t index = std::lower_bound(distinct.begin(), distinct.end(), path) - distinct.begin();
    const size_t count = distinct.size();
    for (size_t i = 0; i < count; ++i) {
      const BlockPath& candidate = distinct[(index + count / 2 + i) % count];
      if (ClusterAt(candidate, fan_out, 1) != ClusterAt(path, fan_out, 1)) return candidate;
    }
    BlockPath half_way = path;
    const uint32_t leaves = ClusterCount(fan_out, path.depth);
    half_way.leaf = (path.leaf + leaves / 2) % leaves;
    return half_way;
  };
  std::vector<BlockPath> others;
  for (const BlockPath& path : paths) others.push_back(other(path));
  return others;
}

Interval BootstrapRatio(const std::vector<double>& numerators, const std::vector<double>& denominators) {
  const size_t n = numerators.size();
  if (n == 0) return {};
  std::mt19937_64 random(1);
  std::uniform_int_distribution<size_t> pick(0, n - 1);
  std::vector<double> ratios;
  for (int r = 0; r < kResamples; ++r) {
    double top = 0, bottom = 0;
    for (size_t i = 0; i < n; ++i) {
      const size_t j = pick(random);
      top += numerators[j];
      bottom += denominators[j];
    }
    ratios.push_back(bottom > 0 ? top / bottom : 0);
  }
  std::sort(ratios.begin(), ratios.end());
  double top = 0, bottom = 0;
  for (size_t i = 0; i < n; ++i) {
    top += numerators[i];
    bottom += denominators[i];
  }
  return {bottom > 0 ? top / bottom : 0, ratios[kResamples * 25 / 1000], ratios[kResamples * 975 / 1000 - 1]};
}

}  // namespace membank
