// How a conversation becomes a prompt: the formats that instruction-tuned models were trained with, by name. A model's own template (Jinja)
// is not run; the format is recognised by its markers. Immutable; any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace membank {

struct ChatMessage {
  std::string role;      // "system", "user" or "assistant"
  std::string content;
};

class ChatTemplate {
 public:
  // "chatml" (Qwen, SmolLM2), "llama3", "llama3.1" (also 3.3: it names a fixed date), "llama3.2" (today's), "gemma" (Gemma 3's; 1 and 2 know no
  // system message), "plain" (for models that know no format: "User:", "Assistant:" and blank lines).
  static constexpr std::string_view kNames = "chatml, llama3, llama3.1, llama3.2, gemma, plain";
  // INVALID_ARGUMENT lists the names. `system`: what the prompt says when the conversation has no system message; chatml only.
  static absl::StatusOr<ChatTemplate> ByName(std::string_view name, std::string_view system = "");
  // The format of a model's own template, with what it says when there is no system message; nothing when it is none of ours.
  static std::optional<ChatTemplate> Recognise(std::string_view jinja);

  const std::string& name() const { return name_; }
  const std::string& system() const { return system_; }

  // The prompt that the assistant's next message continues. INVALID_ARGUMENT begins with the field that is wrong ("messages[1].role"): a
  // message that has another role, is out of turn, or holds one of the format's control tokens, which would end it and begin another one's.
  absl::StatusOr<std::string> Render(absl::Span<const ChatMessage> messages) const;
  // Whether the prompt is written with special tokens, and to be read so.
  bool has_special_tokens() const;
  // Text that ends an answer.
  const std::vector<std::string>& stops() const;

 private:
  ChatTemplate() = default;
  absl::Status Check(absl::Span<const ChatMessage> messages) const;
  std::string name_, system_;
};

// What a model folder (chat_template.jinja or tokenizer_config.json), a tokenizer.json in one, or a GGUF file declares. Without a template:
// "plain". Nothing: its template is none of ours.
absl::StatusOr<std::optional<ChatTemplate>> LoadChatTemplate(const std::string& path);

}  // namespace membank
