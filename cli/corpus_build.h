// The stages of `membank corpus build`: documents -> tokens -> windows -> embeddings -> tree -> leaves -> packed, shuffled shards. Written to
// `output`: shards and index.json (common/corpus/packed.h), tree.safetensors, tree.svg, build.json (what it was made from). While it
// runs: work/ with embeddings. Interrupted at any moment, the same command goes on; finished, it changes nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/corpus/sources.h"

namespace membank {

struct CorpusBuildOptions {
  std::vector<SourceSpec> sources;
  std::string tokenizer;          // anchor directory, tokenizer.json or GGUF
  std::string embedder;           // MiniLM directory
  std::string tree;               // an existing tree; empty: fit one
  uint32_t fan_out = 16, depth = 4;
  uint64_t seed = 1;
  uint32_t steps = 20, examples_per_step = 6400;
  uint32_t sequence_length = 2048;
  double held_out = 0;            // share of the documents that goes to `output`/held-out, a corpus of its own on the same tree
  std::string output;
  std::string pages;              // also write the documents with their paths here; empty: do not
};

// ALREADY_EXISTS when `output` holds a corpus made from something else.
absl::Status BuildCorpus(const CorpusBuildOptions& options);

}  // namespace membank
