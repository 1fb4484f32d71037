// From samples to what the model runs: the sequences of one update, the distinct blocks they use, and micro-batches of rows grouped by
// block. Documents become segments, so attention stays inside a document and no target crosses its end (mission/paper.md section 5).
// Values and pure functions; one thread at a time.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "common/bank/bank_spec.h"
#include "common/corpus/packed.h"
#include "model_worker/memory/block_cache.h"
#include "model_worker/model/transformer.h"

namespace membank {

struct TrainSequence {
  uint64_t index = 0;      // in the corpus
  BlockPath path;          // or the generic memory
  PackedSequence data;
};

// What a whole update adds up to, over all ranks.
struct BatchTotals {
  bool control = false;       // every sequence is there twice, with its path and with the generic memory; each kind has its own mean loss
  uint64_t tokens = 0, targets = 0, generic_targets = 0;

  // Targets over which the loss of the generic (or of the other) sequences is averaged.
  uint64_t Denominator(bool generic) const { return !control ? targets : generic ? generic_targets : targets - generic_targets; }
};

// One optimizer update. Sequences are sorted by path, generic ones first: rows of one block lie together and a micro-batch touches few blocks.
struct TrainBatch : BatchTotals {
  uint64_t step = 0;          // of the run, from 1
  uint64_t server_step = 0;   // of the bank
  std::vector<TrainSequence> sequences;                // this rank's
  std::vector<BlockId> blocks;                         // of them: distinct, ascending
  absl::flat_hash_map<BlockId, size_t> block_index;    // into `blocks`
  std::vector<BlockId> trained_blocks;                 // of the whole update, all ranks
};

// Sorts the sequences and fills the derived members; then all sequences are one rank's.
void FinishBatch(const BankSpec& spec, TrainBatch* batch);
// Keeps the part of `rank`: a run of the sorted sequences, so that the parts share few blocks. All parts together, in rank order, are the batch.
void TakePart(const BankSpec& spec, uint32_t rank, uint32_t world_size, TrainBatch* batch);

// "corpus sequences 17 4 9 ...": of this rank, the first 16.
std::string SequencesText(const TrainBatch& batch);

// Tokens that have a successor in their document.
uint64_t CountTargets(const PackedSequence& sequence);

// Sequences [begin, end) of a batch as rows. `targets` holds the next token, -100 where there is none; the rows before `generic_rows`
// belong to sequences with the generic memory. `values` and `gradients` (fp32, or undefined) go with batch.blocks.
struct MicroBatch {
  RaggedBatch rows;
  torch::Tensor targets;
  int64_t generic_rows = 0;
};
MicroBatch MakeMicroBatch(const BankSpec& spec, const TrainBatch& batch, size_t begin, size_t end, absl::Span<const BlockHandle> values,
                          absl::Span<const torch::Tensor> gradients);

}  // namespace membank
