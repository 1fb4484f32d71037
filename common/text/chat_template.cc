#include "common/text/chat_template.h"

#include <ctime>
#include <filesystem>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/tensors/gguf.h"
#include "common/text/utf8.h"

namespace membank {
namespace {

// What one format is made of; a message is begin + role + middle + content + end.
struct Format {
  std::string_view name;
  std::string_view text_begin;         // of the whole prompt: the begin-of-text token
  std::string_view begin, middle, end;
  std::string_view assistant;          // the role of the model
  bool trim;                           // contents lose the white space around them
  std::vector<std::string> stops, controls;
};

const std::vector<Format>& Formats() {
  static const std::vector<std::string> kLlama = {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"};
  static const auto& formats = *new std::vector<Format>{
      {"chatml", "", "<|im_start|>", "\n", "<|im_end|>\n", "assistant", false, {"<|im_end|>"}, {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}},
      {"llama3", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "assistant", true, {"<|eot_id|>"}, kLlama},
      {"llama3.1", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "assistant", true, {"<|eot_id|>"}, kLlama},
      {"llama3.2", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "assistant", true, {"<|eot_id|>"}, kLlama},
      {"gemma", "<bos>", "<start_of_turn>", "\n", "<end_of_turn>\n", "model", true, {"<end_of_turn>"}, {"<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"}},
      {"plain", "", "", ":\n", "\n\n", "Assistant", false, {"\n\nUser:"}, {}},
  };
  return formats;
}

const Format* FindFormat(std::string_view name) {
  for (const Format& format : Formats()) {
    if (format.name == name) return &format;
  }
  return nullptr;
}

// Python's str.strip.
bool IsStripped(uint32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
         c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

std::string_view Strip(std::string_view text) {
  while (!text.empty()) {
    const Utf8Sequence first = NextUtf8(text);
    if (!IsStripped(first.code_point)) break;
    text.remove_prefix(first.length);
  }
  while (!text.empty()) {
    size_t last = text.size() - 1;
    while (last > 0 && (static_cast<uint8_t>(text[last]) & 0xc0) == 0x80) --last;
    if (!IsStripped(NextUtf8(text.substr(last)).code_point)) break;
    text.remove_suffix(text.size() - last);
  }
  return text;
}

std::string Today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts;
  localtime_r(&now, &parts);
  char text[32];
  return std::string(text, std::strftime(text, sizeof(text), "%d %b %Y", &parts));
}

// What a ChatML template writes literally as the system message: '<|im_start|>system\nYou are ...<|im_end|>\n'.
std::string DefaultSystem(std::string_view jinja) {
  for (const std::string_view begin : {"<|im_start|>system\\n", "<|im_start|>system\n"}) {
    for (size_t at = jinja.find(begin); at != std::string_view::npos; at = jinja.find(begin, at + 1)) {
      const size_t first = at + begin.size(), end = jinja.find("<|im_end|>", first);
      if (end == std::string_view::npos) continue;
      const std::string_view text = jinja.substr(first, end - first);
      if (!text.empty() && text.find_first_of("'\"{}\\") == std::string_view::npos) return std::string(text);
    }
  }
  return "";
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::ByName(std::string_view name, std::string_view system) {
  if (FindFormat(name) == nullptr) return InvalidArgument("the chat template '{}' is not known; {} are", name, kNames);
  ChatTemplate result;
  result.name_ = name;
  result.system_ = system;
  return result;
}

std::optional<ChatTemplate> ChatTemplate::Recognise(std::string_view jinja) {
  const auto has = [jinja](std::string_view marker) { return jinja.find(marker) != std::string_view::npos; };
  if (has("<|im_start|>")) return *ByName("chatml", DefaultSystem(jinja));
  if (has("<start_of_turn>")) return *ByName("gemma");
  if (!has("<|start_header_id|>")) return std::nullopt;
  if (!has("Cutting Knowledge Date")) return *ByName("llama3");
  return *ByName(has("strftime_now") ? "llama3.2" : "llama3.1");
}

const std::vector<std::string>& ChatTemplate::stops() const { return FindFormat(name_)->stops; }

bool ChatTemplate::has_special_tokens() const { return !FindFormat(name_)->controls.empty(); }

absl::Status ChatTemplate::Check(absl::Span<const ChatMessage> messages) const {
  size_t turn = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    if (role != "system" && role != "user" && role != "assistant") {
      return InvalidArgument("messages[{}].role is '{}'; system, user or assistant are expected", i, role);
    }
    for (const std::string& control : FindFormat(name_)->controls) {
      if (content.find(control) != std::string::npos) return InvalidArgument("messages[{}].content holds the control token {}", i, control);
    }
    if (name_ != "gemma" || (i == 0 && role == "system")) continue;
    if ((role == "user") != (turn++ % 2 == 0)) {
      return InvalidArgument("messages[{}] is the {}'s; with the chat template gemma the user has every other turn, after at most one system message",
                             i, role);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ChatTemplate::Render(absl::Span<const ChatMessage> messages) const {
  RETURN_IF_ERROR(Check(messages));
  const Format& format = *FindFormat(name_);
  std::string prompt(format.text_begin);
  const auto add = [&](std::string_view role, std::string_view content) {
    prompt += fmt::format("{}{}{}{}{}", format.begin, role, format.middle, content, format.end);
  };
  std::optional<std::string> system;
  if (!messages.empty() && messages[0].role == "system") {
    system = messages[0].content;
    messages.remove_prefix(1);
  } else if (!system_.empty()) {
    system = system_;
  }
  std::string first_prefix;   // of the first message's content
  if (name_ == "llama3.1" || name_ == "llama3.2") {
    const std::string date = name_ == "llama3.1" ? "26 Jul 2024" : Today();
    add("system", fmt::format("Cutting Knowledge Date: December 2023\nToday Date: {}\n\n{}", date, system.has_value() ? Strip(*system) : ""));
  } else if (name_ == "gemma") {
    if (system.has_value()) first_prefix = *system + "\n\n";
  } else if (name_ == "plain") {
    if (system.has_value()) prompt += *system + "\n\n";
  } else if (system.has_value()) {
    add("system", format.trim ? Strip(*system) : *system);
  }
  for (const ChatMessage& message : messages) {
    const std::string_view content = format.trim ? Strip(message.content) : std::string_view(message.content);
    if (name_ == "plain" && message.role == "system") {
      prompt += message.content + "\n\n";
      continue;
    }
    const std::string_view user = name_ == "plain" ? "User" : std::string_view(message.role);
    add(message.role == "assistant" ? format.assistant : user, first_prefix + std::string(content));
    first_prefix.clear();
  }
  return prompt += fmt::format("{}{}{}", format.begin, format.assistant, format.middle);
}

namespace {

// Of a tokenizer_config.json: a template, or a list of named ones.
absl::StatusOr<std::string> ReadConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  ASSIGN_OR_RETURN(const nlohmann::json config, ParseJsonObject(text, path));
  const auto entry = config.find("chat_template");
  if (entry == config.end()) return "";
  if (entry->is_string()) return entry->get<std::string>();
  for (const nlohmann::json& named : *entry) {
    if (named.is_object() && named.value("name", nlohmann::json()) == "default" && named.contains("template") && named["template"].is_string()) {
      return named["template"].get<std::string>();
    }
  }
  return "";
}

absl::StatusOr<std::string> ReadTemplate(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored) && fs::path(path).extension() != ".json" && fs::path(path).extension() != ".model") {
    ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
    absl::StatusOr<std::string> text = file->GetString("tokenizer.chat_template");
    return absl::IsNotFound(text.status()) ? std::string() : text;
  }
  const fs::path folder = fs::is_directory(path, ignored) ? fs::path(path) : fs::path(path).parent_path();
  if (const fs::path jinja = folder / "chat_template.jinja"; fs::exists(jinja, ignored)) return ReadFile(jinja);
  if (const fs::path config = folder / "tokenizer_config.json"; fs::exists(config, ignored)) return ReadConfig(config);
  return "";
}

}  // namespace

absl::StatusOr<std::optional<ChatTemplate>> LoadChatTemplate(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string jinja, ReadTemplate(path));
  if (jinja.empty()) return std::optional<ChatTemplate>(*ChatTemplate::ByName("plain"));
  return ChatTemplate::Recognise(jinja);
}

}  // namespace membank
