// The JSON of OpenAI's API -> the wire's messages. JSON ends here. Pure functions; INVALID_ARGUMENT names the field.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/chat_template.h"
#include "membank/v1/router.pb.h"

namespace membank {

struct CompletionRequest {
  std::vector<v1::RouteGenerateRequest> prompts;  // one per prompt, all with the same options
  std::string model;                              // as the client named it
  bool chat = false;
  bool stream = false;
  bool include_usage = false;                     // a last part of the stream with the token counts
};

// POST /v1/completions: prompt is a string, a list of strings, of token ids, or of lists of token ids.
absl::StatusOr<CompletionRequest> ParseCompletionRequest(const std::string& body);

// POST /v1/chat/completions. The messages become one prompt as `chat` writes it; unless memory.path or memory.retrieve_on is given, the path is found
// (if the router can: `can_resolve`) by the last message of the user, not by the template around it.
absl::StatusOr<CompletionRequest> ParseChatRequest(const std::string& body, bool can_resolve, const ChatTemplate& chat);

struct EmbeddingRequest {
  std::vector<std::string> texts;
  std::string model;
  bool base64 = false;
};
absl::StatusOr<EmbeddingRequest> ParseEmbeddingRequest(const std::string& body);

absl::StatusOr<v1::TokenizeRequest> ParseTokenizeRequest(const std::string& body);
absl::StatusOr<v1::DetokenizeRequest> ParseDetokenizeRequest(const std::string& body);

}  // namespace membank
