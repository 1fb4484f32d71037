#include "cli/asking.h"

#include <cstdio>

#include "common/base/status_macros.h"

namespace membank {

void AskingOptions::AddOptions(CLI::App* command) {
  command->add_option("--router", router, "gRPC address of the router, host:port");
  command->add_option("--memory", memory, "none, generic or fetched")->check(CLI::IsMember({"none", "generic", "fetched"}));
  command->add_option("--path", paths, "take this path, e.g. 3.5, instead of finding one by the text; of stacked banks NAME=3.5, once per bank");
  command->add_option("--bank", request.memory.banks, "use only this bank of those that are stacked; repeat for more");
  command->add_option("--max-tokens", request.max_tokens, "new tokens at most");
  command->add_option("--temperature", request.temperature, "0 = always the most likely token")->check(CLI::Range(0.0, 100.0));
  command->add_option("--top-p", request.top_p, "draw among the most likely tokens that together have this probability")->check(CLI::Range(0.0, 1.0));
  command->add_option("--seed", request.seed, "of the draws");
}

absl::StatusOr<MemoryMode> ParseMemoryMode(const std::string& text) {
  if (text == "none") return MemoryMode::kNone;
  if (text == "generic") return MemoryMode::kGeneric;
  if (text == "fetched") return MemoryMode::kFetched;
  return InvalidArgument("memory '{}' is not one of none, generic, fetched", text);
}

absl::Status SetPaths(const std::vector<std::string>& paths, MemoryChoice* memory) {
  memory->path.clear();
  memory->paths.clear();
  for (const std::string& path : paths) {
    const size_t equals = path.find('=');
    std::string& place = equals == std::string::npos ? memory->path : memory->paths[path.substr(0, equals)];
    if (!place.empty()) return InvalidArgument("path '{}' is the second one for its bank, after '{}'; give one per bank", path, place);
    place = equals == std::string::npos ? path : path.substr(equals + 1);
  }
  return absl::OkStatus();
}

namespace {

std::string DescribeBank(const MemoryReport& memory) {
  std::string text = "path " + memory.path_text;
  if (!memory.blocks.empty()) {
    text += " (blocks";
    for (const BlockId& block : memory.blocks) text += " " + ToString(block);
    if (!memory.distances.empty()) text += ", distances";
    for (const float distance : memory.distances) text += fmt::format(" {:.2f}", distance);
    text += ")";
  }
  if (!memory.bank_id.empty()) {
    text += fmt::format(", bank {} version {}", memory.bank_id, memory.bank_version.empty() ? "(live head)" : memory.bank_version);
  }
  return text + (memory.no_rights ? ", left out: the worker may not read it" : "");
}

}  // namespace

std::string Describe(const RouterGenerateReply& reply) {
  std::string text = DescribeBank(reply.memory);
  for (const MemoryReport& stacked : reply.memory.stacked) text += "; " + DescribeBank(stacked);
  return text + fmt::format(", {} tokens in {:.1f} s", reply.completion_tokens, reply.total_ms / 1000);
}

absl::StatusOr<RouterGenerateReply> AskAndPrint(RouterClient& client, const RouterGenerateRequest& request) {
  ASSIGN_OR_RETURN(RouterGenerateReply reply, client.Generate(request, [](std::string_view text) {
    fwrite(text.data(), 1, text.size(), stdout);
    return fflush(stdout) == 0;
  }));
  fmt::print("\n");
  fflush(stdout);
  fmt::print(stderr, "[{}]\n", Describe(reply));
  return reply;
}

}  // namespace membank
