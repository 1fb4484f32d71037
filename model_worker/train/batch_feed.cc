#include "model_worker/train/batch_feed.h"

#include <algorithm>
#include <memory>

#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "model_worker/train/stopwatch.h"

namespace membank {

BatchFeed::BatchFeed(const TrainOptions& options, const PackedCorpus* corpus, MemoryClient* client, BlockCache* cache,
                     StepCommitter* committer, uint64_t base_step)
    : options_(options), spec_(client->spec()), corpus_(corpus), client_(client), cache_(cache), committer_(committer), base_step_(base_step),
      order_(options.seed, corpus->size(), options.EffectiveGenericProbability(spec_.fan_out)) {}

void BatchFeed::Start(uint64_t update) {
  started_ = update;
  if (!options_.prefetch) return;
  auto promise = std::make_shared<std::promise<absl::StatusOr<Preparation>>>();
  in_flight_ = promise->get_future();
  thread_.Schedule([this, update, promise] { promise->set_value(Prepare(update)); });
}

absl::StatusOr<ReadyBatch> BatchFeed::Take() {
  ASSIGN_OR_RETURN(Preparation preparation, options_.prefetch ? in_flight_.get() : Prepare(started_));
  ReadyBatch& ready = preparation.ready;
  if (!preparation.late.empty()) {
    RETURN_IF_ERROR(committer_->WaitApplied(preparation.late_step));
    std::vector<BlockId> ids;
    for (const size_t i : preparation.late) ids.push_back(ready.batch.blocks[i]);
    Stopwatch watch;
    ASSIGN_OR_RETURN(std::vector<BlockHandle> blocks, cache_->Get(ids, preparation.late_step));
    for (size_t i = 0; i < blocks.size(); ++i) ready.blocks[preparation.late[i]] = std::move(blocks[i]);
    ready.fetch_seconds += watch.Lap();
  }
  for (const BlockId id : ready.batch.trained_blocks) touched_[id] = ready.batch.server_step;
  return std::move(ready);
}

absl::StatusOr<TrainBatch> BatchFeed::Read(uint64_t update) {
  TrainBatch batch;
  batch.step = update + 1;
  batch.server_step = base_step_ + batch.step;
  batch.control = options_.generic_control;
  const uint64_t first = (batch.step - 1) * options_.batch_sequences;
  for (uint64_t sample = first; sample < first + options_.batch_sequences; ++sample) {
    TrainSequence sequence;
    sequence.index = order_.IndexOf(sample);
    ASSIGN_OR_RETURN(sequence.data, corpus_->Read(sequence.index));
    const bool generic = order_.UsesGeneric(sample);
    sequence.path = {generic ? MemoryMode::kGeneric : MemoryMode::kFetched, spec_.depth(), generic ? 0 : sequence.data.leaf};
    if (batch.control) {
      batch.sequences.push_back(sequence);
      batch.sequences.back().path = {MemoryMode::kGeneric, spec_.depth(), 0};
    }
    batch.sequences.push_back(std::move(sequence));
  }
  FinishBatch(spec_, &batch);
  if (batch.targets == 0)
    return FailedPrecondition("step {}: its {} sequences (corpus {} and on) hold no document of two tokens or more, so there is nothing "
                              "to learn", batch.step, batch.sequences.size(), batch.sequences[0].index);
  if (options_.world_size > 1) TakePart(spec_, options_.rank, options_.world_size, &batch);
  return batch;
}

// The newest update that the block must contain when `server_step` computes.
uint64_t BatchFeed::RequiredStep(BlockId id, uint64_t server_step) const {
  auto it = touched_.find(id);
  return it == touched_.end() ? 0 : std::min(it->second, server_step - 1 - std::min<uint64_t>(options_.staleness, server_step - 1));
}

// Only advice: without it the servers read when the blocks are asked for.
void BatchFeed::Announce(uint64_t update) {
  if (update >= options_.steps) return;
  const absl::StatusOr<TrainBatch> next = Read(update);
  const absl::Status announced = next.ok() ? client_->Prefetch(next->blocks) : next.status();
  if (!announced.ok()) LOG_DEBUG("the blocks of update {} were not announced: {}", update, announced.ToString());
}

absl::StatusOr<BatchFeed::Preparation> BatchFeed::Prepare(uint64_t update) {
  Preparation preparation;
  ReadyBatch& ready = preparation.ready;
  Stopwatch watch;
  ASSIGN_OR_RETURN(ready.batch, Read(update));
  ready.data_seconds = watch.Lap();

  const uint64_t applied = committer_->applied();
  std::vector<BlockId> early;
  std::vector<size_t> early_index;
  for (size_t i = 0; i < ready.batch.blocks.size(); ++i) {
    const uint64_t required = RequiredStep(ready.batch.blocks[i], ready.batch.server_step);
    if (required > applied) {
      preparation.late.push_back(i);
      preparation.late_step = std::max(preparation.late_step, required);
    } else {
      early.push_back(ready.batch.blocks[i]);
      early_index.push_back(i);
    }
  }
  Announce(update + 1);
  ASSIGN_OR_RETURN(std::vector<BlockHandle> blocks, cache_->Get(early));
  ready.blocks.resize(ready.batch.blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) ready.blocks[early_index[i]] = std::move(blocks[i]);
  ready.fetch_seconds = watch.Lap();
  return preparation;
}

}  // namespace membank
