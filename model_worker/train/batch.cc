#include "model_worker/train/batch.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "fmt/format.h"
#include "model_worker/model/bank_levels.h"

namespace membank {
namespace {

constexpr int64_t kNoTarget = -100;

// Rows of one sequence under every block it uses; adjacent rows of the same block become one range.
void AddRows(const BankSpec& spec, const BlockPath& path, int64_t begin, int64_t end,
             std::vector<std::map<BlockId, std::vector<std::pair<int64_t, int64_t>>>>* levels) {
  for (const BlockId id : spec.BlocksOf(path)) {
    auto& rows = (*levels)[id.level - 1][id];
    if (!rows.empty() && rows.back().second == begin) rows.back().second = end;
    else rows.emplace_back(begin, end);
  }
}

void CollectBlocks(const BankSpec& spec, TrainBatch* batch) {
  batch->blocks.clear();
  batch->block_index.clear();
  for (const TrainSequence& sequence : batch->sequences)
    for (const BlockId id : spec.BlocksOf(sequence.path)) batch->blocks.push_back(id);
  std::sort(batch->blocks.begin(), batch->blocks.end());
  batch->blocks.erase(std::unique(batch->blocks.begin(), batch->blocks.end()), batch->blocks.end());
  for (size_t i = 0; i < batch->blocks.size(); ++i) batch->block_index[batch->blocks[i]] = i;
}

}  // namespace

uint64_t CountTargets(const PackedSequence& sequence) {
  uint64_t targets = 0, begin = 0;
  for (const uint32_t end : sequence.document_ends) {
    if (end > begin) targets += end - begin - 1;
    begin = end;
  }
  return targets;
}

void FinishBatch(const BankSpec& spec, TrainBatch* batch) {
  std::stable_sort(batch->sequences.begin(), batch->sequences.end(), [](const TrainSequence& a, const TrainSequence& b) {
    return std::tie(a.path.mode, a.path.leaf) < std::tie(b.path.mode, b.path.leaf);
  });
  for (const TrainSequence& sequence : batch->sequences) {
    const uint64_t targets = CountTargets(sequence.data);
    batch->tokens += sequence.data.tokens.size();
    batch->targets += targets;
    if (sequence.path.mode == MemoryMode::kGeneric) batch->generic_targets += targets;
  }
  CollectBlocks(spec, batch);
  batch->trained_blocks = batch->blocks;
}

void TakePart(const BankSpec& spec, uint32_t rank, uint32_t world_size, TrainBatch* batch) {
  const size_t count = batch->sequences.size(), begin = count * rank / world_size, end = count * (rank + 1) / world_size;
  batch->sequences.erase(batch->sequences.begin() + end, batch->sequences.end());
  batch->sequences.erase(batch->sequences.begin(), batch->sequences.begin() + begin);
  CollectBlocks(spec, batch);
}

std::string SequencesText(const TrainBatch& batch) {
  std::string text = "corpus sequences";
  for (size_t i = 0; i < std::min<size_t>(batch.sequences.size(), 16); ++i) text += fmt::format(" {}", batch.sequences[i].index);
  return batch.sequences.size() > 16 ? text + " ..." : text;
}

MicroBatch MakeMicroBatch(const BankSpec& spec, const TrainBatch& batch, size_t begin, size_t end, absl::Span<const BlockHandle> values,
                          absl::Span<const torch::Tensor> gradients) {
  MicroBatch micro;
  std::vector<int64_t> tokens, targets;
  std::vector<std::map<BlockId, std::vector<std::pair<int64_t, int64_t>>>> levels(spec.depth());
  for (size_t s = begin; s < end; ++s) {
    const TrainSequence& sequence = batch.sequences[s];
    const int64_t first = static_cast<int64_t>(tokens.size());
    uint32_t document = 0;
    for (const uint32_t document_end : sequence.data.document_ends) {
      if (document_end == document) continue;
      micro.rows.segments.push_back({first + document, first + document_end, nullptr});
      for (uint32_t t = document; t < document_end; ++t) {
        tokens.push_back(sequence.data.tokens[t]);
        targets.push_back(t + 1 < document_end ? sequence.data.tokens[t + 1] : kNoTarget);
      }
      document = document_end;
    }
    const int64_t last = static_cast<int64_t>(tokens.size());
    AddRows(spec, sequence.path, first, last, &levels);
    if (sequence.path.mode == MemoryMode::kGeneric) micro.generic_rows = last;
  }
  micro.rows.tokens = torch::tensor(tokens, torch::kLong);
  micro.targets = torch::tensor(targets, torch::kLong);
  for (uint32_t level = 1; level <= spec.depth(); ++level) {
    if (spec.width(level) == 0) continue;
    MemoryLevel& memory = micro.rows.memory.emplace_back(LevelOf(spec, level, /*bank=*/0));
    for (auto& [id, rows] : levels[level - 1]) {
      const size_t i = batch.block_index.at(id);
      memory.groups.push_back({values[i]->values, gradients.empty() ? torch::Tensor() : gradients[i], std::move(rows)});
    }
  }
  return micro;
}

}  // namespace membank
