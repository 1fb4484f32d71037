#include "model_worker/options.h"

#include <algorithm>
#include <cctype>

#include "CLI/CLI.hpp"
#include "common/base/status_macros.h"

namespace membank {
namespace {

// Runs of digits compare as numbers.
bool NaturalLess(const std::string& a, const std::string& b) {
  auto digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (!digit(a[i]) || !digit(b[j])) {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
      continue;
    }
    while (i < a.size() && a[i] == '0') ++i;
    while (j < b.size() && b[j] == '0') ++j;
    const size_t a_begin = i, b_begin = j;
    while (i < a.size() && digit(a[i])) ++i;
    while (j < b.size() && digit(b[j])) ++j;
    if (i - a_begin != j - b_begin) return i - a_begin < j - b_begin;
    if (const int order = a.compare(a_begin, i - a_begin, b, b_begin, j - b_begin); order != 0) return order < 0;
  }
  if ((i < a.size()) != (j < b.size())) return j < b.size();
  return a < b;
}

}  // namespace

void BindOptions(CLI::App& app, WorkerOptions* o) {
  BindOptions(app, &o->service);
  app.add_option("--anchor", o->anchor, "The anchor: a Hugging Face directory or a GGUF file");
  app.add_option("--tokenizer", o->tokenizer, "tokenizer.json, SentencePiece .model, or a directory or GGUF file with one; empty: the anchor's own");
  app.add_option("--chat-template", o->chat_template,
                 "How conversations are written: chatml, llama3, llama3.1, llama3.2, gemma, plain; auto: as the anchor's own template, plain without one")
      ->check(CLI::IsMember({"auto", "chatml", "llama3", "llama3.1", "llama3.2", "gemma", "plain"}));
  app.add_option("--model-name", o->model_name, "Name that status and clients see; empty: the last part of --anchor");
  app.add_option("--slot-map", o->slot_map, "File, or etcd://HOST:PORT[,HOST:PORT...]/KEY (etcds:// with TLS), that says which memory server has which slots");
  app.add_option("--memory-servers", o->memory_servers, "Addresses of the memory servers, when there is no slot map: a striped one")
      ->delimiter(',');
  app.add_option("--bank-version", o->bank_version,
                 "Published bank version to serve; 'latest': the greatest name at start; 'head': the live head, blocks asked for each time");
  app.add_option("--stacked-slot-map", o->stacked_slot_map,
                 "As --slot-map, of a second bank of the same anchor: its effect is added to the first one's where this worker may read it");
  app.add_option("--stacked-memory-servers", o->stacked_memory_servers, "As --memory-servers, of the second bank")->delimiter(',');
  app.add_option("--stacked-bank-version", o->stacked_bank_version, "As --bank-version, of the second bank");
  app.add_flag("--no-memory", o->no_memory, "Serve the anchor alone; no memory servers are needed");
  app.add_option("--dtype", o->dtype, "Arithmetic of the model: fp32, or bf16 (half the bytes, about 3 digits)")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--threads", o->threads, "Compute threads; 0: one per core")->check(CLI::Range(0, 1024));
  app.add_option("--context", o->context, "Tokens of a sequence, prompt and answer together; 0: what the anchor was made for");
  app.add_option("--max-running", o->max_running, "Sequences computed at once; more wait. Each may pin one path of blocks")
      ->check(CLI::Range(1, 4096));
  app.add_option("--prefill-tokens", o->prefill_tokens, "Prompt tokens read in one step; smaller: steadier streams, slower prompts")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--max-queued-tokens", o->max_queued_tokens, "Prompt tokens that may wait; more are refused with RESOURCE_EXHAUSTED")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 32));
  app.add_option("--kv-cache-tokens", o->kv_cache_tokens, "Tokens of KV cache of all running sequences together")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 32));
  app.add_option("--block-cache-bytes", o->block_cache_bytes, "Bytes of RAM, for each bank, for blocks that no running sequence uses");
  app.add_option("--resident-levels", o->resident_levels,
                 "Blocks of levels 1 to this one are fetched at the start and after a change of version, and stay, beside --block-cache-bytes; 0: none")
      ->check(CLI::Range(0u, 8u));
  app.add_option("--block-lease-ms", o->block_lease_ms,
                 "Milliseconds that cached blocks may be used without news from the memory servers about what is blocked; a fifth of it between looks")
      ->check(CLI::Range(500u, 3600000u));
}

absl::Status Validate(const WorkerOptions& options) {
  RETURN_IF_ERROR(Validate(options.service));
  if (options.anchor.empty()) return InvalidArgument("--anchor is empty; give a Hugging Face directory or a GGUF file");
  const bool servers = !options.memory_servers.empty();
  const int sources = static_cast<int>(options.no_memory) + static_cast<int>(servers) + static_cast<int>(!options.slot_map.empty());
  if (sources != 1) {
    return InvalidArgument("{} of --slot-map, --memory-servers and --no-memory are given; exactly one is needed", sources);
  }
  if (options.bank_version.empty()) return InvalidArgument("--bank-version is empty; allowed: latest, head, or a published version");
  if (!options.stacked_slot_map.empty() && !options.stacked_memory_servers.empty()) {
    return InvalidArgument("both --stacked-slot-map and --stacked-memory-servers are given; give one of the two");
  }
  if (HasStackedBank(options) && options.no_memory) {
    return InvalidArgument("a stacked bank goes on top of a first one, but --no-memory is given; give --slot-map or --memory-servers instead");
  }
  if (options.stacked_bank_version.empty()) {
    return InvalidArgument("--stacked-bank-version is empty; allowed: latest, head, or a published version");
  }
  return absl::OkStatus();
}

bool HasStackedBank(const WorkerOptions& options) { return !options.stacked_slot_map.empty() || !options.stacked_memory_servers.empty(); }

absl::StatusOr<std::string> ChooseBankVersion(const std::string& setting, const std::string& wanted, const std::vector<std::string>& published) {
  if (wanted == "head") return std::string();
  if (wanted == "latest") {
    if (published.empty()) {
      return FailedPrecondition("{} is latest, but the memory servers have published no version; publish one, or serve 'head'", setting);
    }
    return *std::max_element(published.begin(), published.end(), NaturalLess);
  }
  if (std::find(published.begin(), published.end(), wanted) == published.end()) {
    return NotFound("{} {} is not published; published: {}; also allowed: latest, head", setting, wanted,
                    published.empty() ? "none" : fmt::format("{}", fmt::join(published, ", ")));
  }
  return wanted;
}

}  // namespace membank
