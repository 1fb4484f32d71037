#include "cli/chat.h"

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "cli/asking.h"
#include "cli/command.h"
#include "common/base/status_macros.h"
#include "common/text/chat_template.h"

namespace membank {
namespace {

struct ChatOptions : AskingOptions {
  std::string system;
};

constexpr char kHelp[] =
    "/memory none|generic|fetched   which memory answers\n"
    "/path 3.5                      take this path (NAME=3.5 in a stacked bank);  /path alone: find it by the message again\n"
    "/reset                         forget the conversation\n"
    "/quit                          end\n";

class Chat {
 public:
  Chat(const ChatOptions& options, RouterClient& client, ChatTemplate chat, MemoryChoice memory)
      : options_(options), client_(client), template_(std::move(chat)), memory_(std::move(memory)) {
    Reset();
  }

  // Reads lines until /quit or the end of the input.
  void Run() {
    fmt::print(stderr, "{}", kHelp);
    for (std::string line; Prompt() && std::getline(std::cin, line);) {
      if (line == "/quit" || line == "/exit") return;
      if (line.empty()) continue;
      if (line.front() == '/') {
        Command(line);
      } else {
        Ask(line);
      }
    }
  }

 private:
  void Reset() {
    history_.clear();
    if (!options_.system.empty()) history_.push_back({"system", options_.system});
  }

  static bool Prompt() {
    fmt::print(stderr, "> ");
    return true;
  }

  void Command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space), value = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "/memory") {
      const absl::StatusOr<MemoryMode> mode = ParseMemoryMode(value);
      if (mode.ok()) {
        memory_.mode = *mode;
      } else {
        fmt::print(stderr, "{}\n", std::string(mode.status().message()));
      }
    } else if (name == "/path") {
      MemoryChoice changed = memory_;
      const absl::Status status = SetPaths(absl::StrSplit(value, ' ', absl::SkipEmpty()), &changed);
      if (status.ok()) {
        memory_ = std::move(changed);
      } else {
        fmt::print(stderr, "{}\n", std::string(status.message()));
      }
    } else if (name == "/reset") {
      Reset();
    } else {
      fmt::print(stderr, "unknown command {}\n{}", name, kHelp);
    }
  }

  // A turn that fails leaves the conversation as it was.
  void Ask(const std::string& line) {
    std::vector<ChatMessage> messages = history_;
    messages.push_back({"user", line});
    absl::StatusOr<std::string> prompt = template_.Render(messages);
    if (!prompt.ok()) {
      fmt::print(stderr, "{}\n", std::string(prompt.status().message()));
      return;
    }
    RouterGenerateRequest request = options_.request;
    request.prompt = *std::move(prompt);
    request.parse_special = template_.has_special_tokens();
    request.stop = template_.stops();
    request.memory = memory_;
    if (memory_.mode == MemoryMode::kFetched) {
      request.memory.retrieve_on = line;
    } else {
      request.memory.path.clear();
      request.memory.paths.clear();
    }
    const absl::StatusOr<RouterGenerateReply> reply = AskAndPrint(client_, request);
    if (!reply.ok()) {
      fmt::print(stderr, "{}\n", std::string(reply.status().message()));
      return;
    }
    history_ = std::move(messages);
    history_.push_back({"assistant", reply->text});
  }

  const ChatOptions& options_;
  RouterClient& client_;
  const ChatTemplate template_;
  MemoryChoice memory_;
  std::vector<ChatMessage> history_;
};

absl::Status RunChat(const ChatOptions& options) {
  MemoryChoice memory = options.request.memory;
  ASSIGN_OR_RETURN(memory.mode, ParseMemoryMode(options.memory));
  RETURN_IF_ERROR(SetPaths(options.paths, &memory));
  ASSIGN_OR_RETURN(const std::unique_ptr<RouterClient> client, RouterClient::Connect(options.router));
  ASSIGN_OR_RETURN(const RouterFacts facts, client->Status());
  if (facts.chat_template.empty()) {
    return Unimplemented("the chat template of the model '{}' is none of {}; start its worker with --chat-template and one of these", facts.model,
                         ChatTemplate::kNames);
  }
  ASSIGN_OR_RETURN(ChatTemplate chat, ChatTemplate::ByName(facts.chat_template, facts.chat_system));
  Chat(options, *client, std::move(chat), std::move(memory)).Run();
  return absl::OkStatus();
}

}  // namespace

void AddChatCommand(CLI::App& app) {
  auto options = std::make_shared<ChatOptions>();
  options->request.max_tokens = 256;
  CLI::App* command = app.add_subcommand("chat", "Talk with the model in the terminal");
  options->AddOptions(command);
  command->add_option("--system", options->system, "the system message; empty: what the model's own template says");
  SetAction(command, [options] { return RunChat(*options); });
}

}  // namespace membank
