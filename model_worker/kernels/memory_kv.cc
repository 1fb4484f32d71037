#include "model_worker/kernels/memory_kv.h"

#include <limits>

#include "model_worker/kernels/matmul.h"

namespace membank {
namespace {

torch::Tensor Head(const torch::Tensor& x, int64_t heads, int64_t head) {
  const int64_t size = x.size(1) / heads;
  return x.narrow(1, head * size, size);
}

// Products of two [any, h * dh], head by head: a_h b_h^T, [h, rows of a, rows of b], fp32.
torch::Tensor HeadProducts(const torch::Tensor& a, const torch::Tensor& b, int64_t heads) {
  torch::Tensor products = torch::zeros({heads, a.size(0), b.size(0)}, a.options().dtype(torch::kFloat));
  for (int64_t h = 0; h < heads; ++h) AddMatMul(products[h], Head(a, heads, h), Head(b, heads, h).t());
  return products;
}

// Columns `rows` of log sums [h, N]: [h, n, 1].
torch::Tensor GatherSums(const torch::Tensor& sums, const MemoryRowRanges& rows) {
  std::vector<torch::Tensor> parts;
  for (const auto& [begin, end] : rows) parts.push_back(sums.narrow(1, begin, end - begin));
  return (parts.size() == 1 ? parts[0] : torch::cat(parts, 1)).unsqueeze(2);
}

// Calls visit(range of rows of the batch, range of rows of the group) for each range, as narrow's start and length.
template <typename Visit>
void ForEachRange(const MemoryRowRanges& rows, Visit visit) {
  int64_t at = 0;
  for (const auto& [begin, end] : rows) {
    visit(begin, at, end - begin);
    at += end - begin;
  }
}

// What backward needs of a group until the row sums over all groups are known.
struct GroupGradient {
  torch::Tensor q, dy;     // [n, h * dh]
  torch::Tensor p, dp;     // [h, n, r] fp32
};

}  // namespace

MemoryKvGroup MemoryKvSlice(const torch::Tensor& block, const torch::Tensor& gradient, int64_t begin, int64_t width, int64_t columns,
                            const MemoryRowRanges& rows) {
  const auto slice = [&](const torch::Tensor& flat, int64_t at) { return flat.narrow(0, at, width * columns).view({width, columns}); };
  MemoryKvGroup group;
  group.keys = slice(block, begin);
  group.values = slice(block, begin + width * columns);
  if (gradient.defined()) {
    group.d_keys = slice(gradient, begin);
    group.d_values = slice(gradient, begin + width * columns);
  }
  group.rows = &rows;
  return group;
}

torch::Tensor MemoryKvForward(const torch::Tensor& q, int64_t heads, double scale, const std::vector<MemoryKvGroup>& groups,
                              torch::Tensor& out) {
  if (groups.empty()) return {};
  torch::Tensor log_sums = torch::full({heads, q.size(0)}, -std::numeric_limits<float>::infinity(), q.options().dtype(torch::kFloat));
  std::vector<torch::Tensor> scores;                                                     // of each group [h, n, r]
  for (const MemoryKvGroup& group : groups) {
    scores.emplace_back();
    if (group.rows->empty()) continue;
    scores.back() = HeadProducts(GatherRows(q, *group.rows), group.keys, heads).mul_(scale);
    const torch::Tensor sums = scores.back().logsumexp(2);                               // [h, n]
    ForEachRange(*group.rows, [&](int64_t begin, int64_t at, int64_t count) {
      torch::Tensor to = log_sums.narrow(1, begin, count);
      to.copy_(torch::logaddexp(to, sums.narrow(1, at, count)));
    });
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].rows->empty()) continue;
    const torch::Tensor p = scores[i].sub_(GatherSums(log_sums, *groups[i].rows)).exp_().to(q.scalar_type());
    for (int64_t h = 0; h < heads; ++h) {
      torch::Tensor to = Head(out, heads, h);
      AddProductToRows(to, *groups[i].rows, p[h], Head(groups[i].values, heads, h));
    }
  }
  return log_sums;
}

void MemoryKvBackward(const torch::Tensor& d_out, const torch::Tensor& q, int64_t heads, double scale, const std::vector<MemoryKvGroup>& groups,
                      const torch::Tensor& log_sums, torch::Tensor dq) {
  if (groups.empty()) return;
  std::vector<GroupGradient> kept;
  torch::Tensor row_sums = torch::zeros_like(log_sums);                                  // of p dp over all groups
  for (const MemoryKvGroup& group : groups) {
    GroupGradient& g = kept.emplace_back();
    if (group.rows->empty()) continue;
    g.q = GatherRows(q, *group.rows);
    g.dy = GatherRows(d_out, *group.rows);
    g.p = HeadProducts(g.q, group.keys, heads).mul_(scale).sub_(GatherSums(log_sums, *group.rows)).exp_();
    g.dp = HeadProducts(g.dy, group.values, heads);
    const torch::Tensor sums = (g.p * g.dp).sum(2);                                      // [h, n]
    ForEachRange(*group.rows, [&](int64_t begin, int64_t at, int64_t count) { row_sums.narrow(1, begin, count).add_(sums.narrow(1, at, count)); });
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    const MemoryKvGroup& group = groups[i];
    if (group.rows->empty()) continue;
    GroupGradient& g = kept[i];
    const torch::Tensor ds = g.dp.sub_(GatherSums(row_sums, *group.rows)).mul_(g.p).mul_(scale).to(q.scalar_type());
    const torch::Tensor p = g.p.to(q.scalar_type());
    for (int64_t h = 0; h < heads; ++h) {
      if (group.d_keys.defined()) {
        AddMatMul(Head(group.d_keys, heads, h), ds[h].t(), Head(g.q, heads, h));
        AddMatMul(Head(group.d_values, heads, h), p[h].t(), Head(g.dy, heads, h));
      }
      if (!dq.defined()) continue;
      torch::Tensor to = Head(dq, heads, h);
      AddProductToRows(to, *group.rows, ds[h], Head(group.keys, heads, h));
    }
  }
}

}  // namespace membank
