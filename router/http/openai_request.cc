#include "router/http/openai_request.h"

#include <random>

#include "common/base/status_macros.h"
#include "router/http/http_error.h"
#include "router/http/json_reader.h"

namespace membank {
namespace {

constexpr int64_t kMaxTokens = 1 << 20;   // the worker knows the real bound
constexpr size_t kMaxPrompts = 256;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxBanks = 16;
constexpr int64_t kMaxLogprobs = 20;
constexpr int64_t kDefaultMaxTokens = 16, kDefaultChatTokens = 512;

absl::StatusOr<std::vector<int32_t>> TokenIdsOf(const nlohmann::json& list, const std::string& name) {
  std::vector<int32_t> ids;
  for (const nlohmann::json& entry : list) {
    if (!entry.is_number_integer() || entry < 0 || entry > INT32_MAX) {
      return ParamError(name, fmt::format("{} holds {}; token ids from 0 to {} are expected", name, entry.dump().substr(0, 40), INT32_MAX));
    }
    ids.push_back(entry.get<int32_t>());
  }
  return ids;
}

absl::Status AddTokens(const nlohmann::json& list, std::vector<v1::Prompt>* prompts) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TokenIdsOf(list, "prompt"));
  prompts->emplace_back().mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<v1::Prompt>> ReadPrompts(const JsonReader& reader) {
  constexpr char kExpected[] = "a string, a list of strings, a list of token ids, or a list of lists of token ids";
  const nlohmann::json* prompt = reader.Find("prompt");
  if (prompt == nullptr) return ParamError("prompt", fmt::format("prompt is missing; {} is expected", kExpected));
  std::vector<v1::Prompt> prompts;
  if (prompt->is_string()) {
    prompts.emplace_back().set_text(prompt->get<std::string>());
    return prompts;
  }
  if (!prompt->is_array()) return reader.WrongType("prompt", kExpected);
  if (prompt->empty()) return ParamError("prompt", fmt::format("prompt is an empty list; {} is expected", kExpected));
  if (prompt->front().is_number()) {
    RETURN_IF_ERROR(AddTokens(*prompt, &prompts));
    return prompts;
  }
  if (prompt->size() > kMaxPrompts) {
    return ParamError("prompt", fmt::format("prompt has {} entries; at most {} are accepted in one request", prompt->size(), kMaxPrompts));
  }
  for (const nlohmann::json& entry : *prompt) {
    if (entry.is_string()) {
      prompts.emplace_back().set_text(entry.get<std::string>());
    } else if (entry.is_array()) {
      RETURN_IF_ERROR(AddTokens(entry, &prompts));
    } else {
      return ParamError("prompt", fmt::format("prompt holds a {}; {} is expected", entry.type_name(), kExpected));
    }
  }
  return prompts;
}

// What completions and chat have in common.
absl::Status ReadSampling(const JsonReader& reader, v1::Sampling* sampling) {
  double temperature = 1, top_p = 1;
  int64_t top_k = 0, n = 1, best_of = 1, seed = std::random_device{}();
  bool ignore_eos = false;
  std::vector<std::string> stop;
  RETURN_IF_ERROR(reader.Read("temperature", 0.0, 100.0, &temperature));
  RETURN_IF_ERROR(reader.Read("top_p", 0.0, 1.0, &top_p));
  RETURN_IF_ERROR(reader.Read("top_k", int64_t{0}, int64_t{1} << 20, &top_k));
  RETURN_IF_ERROR(reader.Read("n", int64_t{1}, int64_t{1}, &n));
  RETURN_IF_ERROR(reader.Read("best_of", int64_t{1}, int64_t{1}, &best_of));
  RETURN_IF_ERROR(reader.Read("seed", INT64_MIN, INT64_MAX, &seed));
  RETURN_IF_ERROR(reader.Read("ignore_eos", &ignore_eos));
  RETURN_IF_ERROR(reader.Read("stop", kMaxStops, &stop));
  sampling->set_temperature(static_cast<float>(temperature));
  sampling->set_top_p(static_cast<float>(top_p));
  if (top_p == 0) sampling->set_top_k(1);  // the wire reads 0 as 1; the client means "only the best"
  if (top_k > 0) sampling->set_top_k(static_cast<uint32_t>(top_k));
  sampling->set_seed(static_cast<uint64_t>(seed));
  sampling->set_ignore_eos(ignore_eos);
  for (std::string& text : stop) {
    if (!text.empty()) sampling->add_stop(std::move(text));
  }
  return absl::OkStatus();
}

absl::Status ReadMemory(const JsonReader& outer, v1::MemoryOptions* memory) {
  const nlohmann::json* object = outer.Find("memory");
  if (object == nullptr) return absl::OkStatus();
  if (!object->is_object()) return outer.WrongType("memory", "an object like {\"mode\": \"fetched\"}");
  const JsonReader reader(*object, "memory.");
  std::string mode, path, retrieve_on, bank;
  RETURN_IF_ERROR(reader.Read("mode", &mode));
  RETURN_IF_ERROR(reader.Read("path", &path));
  RETURN_IF_ERROR(reader.Read("retrieve_on", &retrieve_on));
  RETURN_IF_ERROR(reader.Read("bank", &bank));
  if (mode == "none") {
    memory->set_mode(v1::MEMORY_MODE_NONE);
  } else if (mode == "generic") {
    memory->set_mode(v1::MEMORY_MODE_GENERIC);
  } else if (mode == "fetched") {
    memory->set_mode(v1::MEMORY_MODE_FETCHED);
  } else if (reader.Has("mode")) {
    return ParamError("memory.mode", fmt::format("memory.mode is '{}'; none, generic or fetched are expected", mode));
  }
  if (!path.empty() && !retrieve_on.empty()) return ParamError("memory.path", "memory.path and memory.retrieve_on exclude each other; give one");
  if (!path.empty()) memory->set_path(path);
  if (!retrieve_on.empty()) memory->set_retrieve_on(retrieve_on);
  memory->set_bank(bank);
  std::vector<std::string> banks;
  RETURN_IF_ERROR(reader.Read("banks", kMaxBanks, &banks));
  memory->mutable_banks()->Assign(banks.begin(), banks.end());
  if (const nlohmann::json* paths = reader.Find("paths")) {
    if (!paths->is_object()) return reader.WrongType("paths", "an object of paths by bank like {\"public\": \"3.5\"}");
    const JsonReader by_bank(*paths, "memory.paths.");
    for (const auto& [name, value] : paths->items()) RETURN_IF_ERROR(by_bank.Read(name, &(*memory->mutable_paths())[name]));
  }
  if (const nlohmann::json* levels = reader.Find("levels")) {
    if (!levels->is_array()) return reader.WrongType("levels", "a list of level numbers from 1");
    ASSIGN_OR_RETURN(const std::vector<int32_t> numbers, TokenIdsOf(*levels, "memory.levels"));
    for (const int32_t level : numbers) memory->add_levels(static_cast<uint32_t>(level));
  }
  return absl::OkStatus();
}

absl::Status ReadStream(const JsonReader& reader, CompletionRequest* request) {
  RETURN_IF_ERROR(reader.Read("model", &request->model));
  RETURN_IF_ERROR(reader.Read("stream", &request->stream));
  if (const nlohmann::json* options = reader.Find("stream_options")) {
    if (!options->is_object()) return reader.WrongType("stream_options", "an object");
    RETURN_IF_ERROR(JsonReader(*options, "stream_options.").Read("include_usage", &request->include_usage));
  }
  return absl::OkStatus();
}

// The text of a message: a string, or a list of parts of type text.
absl::StatusOr<std::string> ContentOf(const nlohmann::json& message, const std::string& name) {
  const auto content = message.find("content");
  if (content != message.end() && content->is_string()) return content->get<std::string>();
  if (content == message.end() || !content->is_array()) return ParamError(name, name + " is not a string or a list of text parts");
  std::string text;
  for (const nlohmann::json& part : *content) {
    if (!part.is_object() || part.value("type", nlohmann::json()) != "text" || !part.contains("text") || !part["text"].is_string()) {
      return ParamError(name, name + " holds a part that is not of type text; only text is understood");
    }
    text += part["text"].get<std::string>();
  }
  return text;
}

absl::StatusOr<std::vector<ChatMessage>> ReadMessages(const JsonReader& reader) {
  const nlohmann::json* list = reader.Find("messages");
  if (list == nullptr || !list->is_array() || list->empty()) {
    return ParamError("messages", "messages must be a list of at least one {\"role\", \"content\"}");
  }
  std::vector<ChatMessage> messages;
  for (const nlohmann::json& entry : *list) {
    const std::string name = fmt::format("messages[{}]", messages.size());
    if (!entry.is_object()) return ParamError(name, fmt::format("{} is a {}; an object is expected", name, entry.type_name()));
    ChatMessage message;
    RETURN_IF_ERROR(JsonReader(entry, name + ".").Read("role", &message.role));
    if (message.role == "developer") message.role = "system";
    ASSIGN_OR_RETURN(message.content, ContentOf(entry, name + ".content"));
    messages.push_back(std::move(message));
  }
  return messages;
}

}  // namespace

absl::StatusOr<CompletionRequest> ParseCompletionRequest(const std::string& body) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(body));
  const JsonReader reader(object);
  CompletionRequest request;
  v1::RouteGenerateRequest options;
  RETURN_IF_ERROR(ReadStream(reader, &request));
  RETURN_IF_ERROR(ReadSampling(reader, options.mutable_sampling()));
  RETURN_IF_ERROR(ReadMemory(reader, options.mutable_memory()));
  int64_t max_tokens = kDefaultMaxTokens, logprobs = -1;
  bool echo = false;
  std::string suffix;
  RETURN_IF_ERROR(reader.Read("max_tokens", int64_t{0}, kMaxTokens, &max_tokens));
  RETURN_IF_ERROR(reader.Read("logprobs", int64_t{0}, kMaxLogprobs, &logprobs));
  RETURN_IF_ERROR(reader.Read("echo", &echo));
  RETURN_IF_ERROR(reader.Read("suffix", &suffix));
  if (!suffix.empty()) return ParamError("suffix", "suffix is not supported: the model only continues a prompt");
  if (max_tokens == 0 && !echo) return ParamError("max_tokens", "max_tokens is 0 without echo: there would be no answer");
  options.mutable_sampling()->set_max_tokens(static_cast<uint32_t>(max_tokens));
  options.mutable_sampling()->set_echo(echo);
  if (logprobs >= 0) options.mutable_sampling()->set_logprobs(static_cast<uint32_t>(logprobs));
  ASSIGN_OR_RETURN(std::vector<v1::Prompt> prompts, ReadPrompts(reader));
  for (v1::Prompt& prompt : prompts) {
    request.prompts.push_back(options);
    request.prompts.back().mutable_prompt()->Swap(&prompt);
  }
  return request;
}

absl::StatusOr<CompletionRequest> ParseChatRequest(const std::string& body, bool can_resolve, const ChatTemplate& chat) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(body));
  const JsonReader reader(object);
  CompletionRequest request;
  request.chat = true;
  v1::RouteGenerateRequest& generate = request.prompts.emplace_back();
  RETURN_IF_ERROR(ReadStream(reader, &request));
  RETURN_IF_ERROR(ReadSampling(reader, generate.mutable_sampling()));
  RETURN_IF_ERROR(ReadMemory(reader, generate.mutable_memory()));
  int64_t max_tokens = kDefaultChatTokens, top_logprobs = 0;
  bool logprobs = false;
  RETURN_IF_ERROR(reader.Read("max_tokens", int64_t{1}, kMaxTokens, &max_tokens));
  RETURN_IF_ERROR(reader.Read("max_completion_tokens", int64_t{1}, kMaxTokens, &max_tokens));
  RETURN_IF_ERROR(reader.Read("logprobs", &logprobs));
  RETURN_IF_ERROR(reader.Read("top_logprobs", int64_t{0}, kMaxLogprobs, &top_logprobs));
  generate.mutable_sampling()->set_max_tokens(static_cast<uint32_t>(max_tokens));
  if (logprobs) generate.mutable_sampling()->set_logprobs(static_cast<uint32_t>(top_logprobs));

  ASSIGN_OR_RETURN(const std::vector<ChatMessage> messages, ReadMessages(reader));
  absl::StatusOr<std::string> prompt = chat.Render(messages);
  if (!prompt.ok()) {
    const std::string problem(prompt.status().message());
    return ParamError(problem.substr(0, problem.find(' ')), problem);
  }
  generate.mutable_prompt()->set_text(*std::move(prompt));
  generate.mutable_prompt()->set_parse_special(chat.has_special_tokens());
  for (const std::string& stop : chat.stops()) generate.mutable_sampling()->add_stop(stop);
  std::string question;   // the last message of the user
  for (const ChatMessage& message : messages) {
    if (message.role == "user") question = message.content;
  }
  v1::MemoryOptions& memory = *generate.mutable_memory();
  const bool fetched = memory.mode() == v1::MEMORY_MODE_FETCHED || memory.mode() == v1::MEMORY_MODE_UNSPECIFIED;
  if (can_resolve && fetched && memory.source_case() == v1::MemoryOptions::SOURCE_NOT_SET && !question.empty()) memory.set_retrieve_on(question);
  return request;
}

absl::StatusOr<EmbeddingRequest> ParseEmbeddingRequest(const std::string& body) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(body));
  const JsonReader reader(object);
  EmbeddingRequest request;
  std::string encoding = "float";
  RETURN_IF_ERROR(reader.Read("model", &request.model));
  RETURN_IF_ERROR(reader.Read("encoding_format", &encoding));
  if (encoding != "float" && encoding != "base64") {
    return ParamError("encoding_format", fmt::format("encoding_format is '{}'; float or base64 are expected", encoding));
  }
  request.base64 = encoding == "base64";
  RETURN_IF_ERROR(reader.Read("input", kMaxPrompts, &request.texts));
  if (request.texts.empty()) return ParamError("input", "input is missing; a string or a list of strings is expected");
  return request;
}

absl::StatusOr<v1::TokenizeRequest> ParseTokenizeRequest(const std::string& body) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(body));
  const JsonReader reader(object);
  if (!reader.Has("prompt")) return ParamError("prompt", "prompt is missing; a string is expected");
  v1::TokenizeRequest request;
  bool parse_special = false;
  RETURN_IF_ERROR(reader.Read("prompt", request.mutable_text()));
  RETURN_IF_ERROR(reader.Read("parse_special", &parse_special));
  request.set_parse_special(parse_special);
  return request;
}

absl::StatusOr<v1::DetokenizeRequest> ParseDetokenizeRequest(const std::string& body) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(body));
  const JsonReader reader(object);
  const nlohmann::json* tokens = reader.Find("tokens");
  if (tokens == nullptr || !tokens->is_array()) return reader.WrongType("tokens", "a list of token ids");
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TokenIdsOf(*tokens, "tokens"));
  v1::DetokenizeRequest request;
  request.mutable_ids()->Add(ids.begin(), ids.end());
  bool keep_special = false;
  RETURN_IF_ERROR(reader.Read("keep_special", &keep_special));
  request.set_keep_special(keep_special);
  return request;
}

}  // namespace membank
