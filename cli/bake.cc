#include "cli/bake.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/connect.h"
#include "common/bank/block_init.h"
#include "common/base/status_macros.h"
#include "model_worker/model/bake.h"
#include "model_worker/model/bank_levels.h"
#include "model_worker/model/weights.h"
#include "model_worker/train/anchor_init.h"

namespace membank {
namespace {

struct BakeCommand {
  MemoryServers servers;
  std::string anchor, path, version, dtype = "bf16", output;
};

absl::StatusOr<std::vector<BakedLevel>> FetchLevels(MemoryClient& client, const BlockPath& path, const std::string& version) {
  const BankSpec& spec = client.spec();
  const std::vector<BlockId> ids = spec.BlocksOf(path);
  std::vector<std::vector<uint8_t>> payloads;
  std::vector<BlockFetch> fetches;
  for (const BlockId id : ids) {
    payloads.emplace_back(spec.BlockBytes(id.level));
    fetches.push_back({.id = id, .destination = absl::MakeSpan(payloads.back())});
  }
  FetchOptions options{.bank_version = version, .int8 = true};
  RETURN_IF_ERROR(client.Fetch(absl::MakeSpan(fetches), options));
  std::vector<BakedLevel> levels;
  for (size_t i = 0; i < ids.size(); ++i) {
    const uint32_t level = ids[i].level;
    if (fetches[i].blocked) return absl::PermissionDeniedError(fmt::format("block {} is blocked: it cannot be baked into a model", ToString(ids[i])));
    torch::Tensor block = torch::empty({static_cast<int64_t>(spec.BlockElements(level))}, torch::kFloat);
    const absl::Span<float> values(block.data_ptr<float>(), spec.BlockElements(level));
    if (fetches[i].payload == PayloadType::kI8Rows) {
      DequantisePayload(spec, level, absl::MakeSpan(payloads[i]).first(PayloadBytes(spec, level, PayloadType::kI8Rows)), values);
    } else {
      DecodePayload(payloads[i], spec.dtype, values);
    }
    levels.push_back({spec.width(level), block, spec.type, spec.memory_layers});
  }
  return levels;
}

absl::Status RunBake(const BakeCommand& command) {
  ASSIGN_OR_RETURN(AnchorWeights anchor, LoadAnchor(command.anchor, command.dtype == "fp32" ? torch::kFloat : torch::kBFloat16));
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, command.servers.Connect());
  const BankSpec& spec = client->spec();
  if (spec.anchor_fingerprint != anchor.origin)
    return FailedPrecondition("bank \"{}\" belongs to the anchor {}; {} comes from {}. Give the anchor that the bank was made beside, or one co-trained with it",
                              spec.bank_id, spec.anchor_fingerprint, command.anchor, anchor.origin);
  RETURN_IF_ERROR(spec.CheckFits(AnchorShapeOf(anchor.config)));
  ASSIGN_OR_RETURN(const BlockPath path, ParsePath(command.path, spec.fan_out, spec.depth()));
  ASSIGN_OR_RETURN(const std::vector<BakedLevel> levels, FetchLevels(*client, path, command.version));
  const int64_t before = anchor.config.ffn_inner;
  ASSIGN_OR_RETURN(anchor, Bake(std::move(anchor), levels));
  RETURN_IF_ERROR(SaveAnchor(anchor, command.output));
  const bool folder = std::filesystem::is_directory(command.anchor);
  if (folder) RETURN_IF_ERROR(CopyTokenizerFiles(command.anchor, command.output));
  fmt::print("wrote {}: {} with path {} of bank {} ({}), FFN {} -> {}\n", command.output, anchor.config.architecture, ToString(path, spec.fan_out), spec.bank_id,
             command.version.empty() ? "live head" : "version " + command.version, before, anchor.config.ffn_inner);
  if (!folder) fmt::print("its tokenizer is that of {}\n", command.anchor);
  return absl::OkStatus();
}

}  // namespace

void AddBakeCommand(CLI::App& app) {
  auto command = std::make_shared<BakeCommand>();
  CLI::App* bake = AddCommand(&app, "bake", "write an anchor with one path of its bank as a plain Hugging Face folder", command, RunBake);
  bake->add_option("--anchor", command->anchor, "Hugging Face directory or GGUF file that the bank belongs to")->required()->check(CLI::ExistingPath);
  bake->add_option("--path", command->path, "which memory: a path as 3.5, or generic")->required();
  bake->add_option("--bank-version", command->version, "published version; without it the live head");
  bake->add_option("--dtype", command->dtype, "of the written tensors")->capture_default_str()->check(CLI::IsMember({"bf16", "fp32"}));
  bake->add_option("--output", command->output, "folder to write")->required();
  command->servers.AddOptions(bake);
}

}  // namespace membank
