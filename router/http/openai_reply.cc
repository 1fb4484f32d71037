#include "router/http/openai_reply.h"

#include "common/text/tokenizer.h"
#include "fmt/format.h"

namespace membank {
namespace {

// A token as a key or a list entry: its text, or OpenAI's "bytes:\xe2\x80" when it is a part of a character.
std::string Show(const std::string& bytes) {
  if (FindInvalidUtf8(bytes) == std::string::npos) return bytes;
  std::string shown = "bytes:";
  for (const char c : bytes) shown += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return shown;
}

nlohmann::json Bytes(const std::string& bytes) {
  nlohmann::json list = nlohmann::json::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

size_t Characters(const std::string& bytes) {
  size_t count = 0;
  for (const char c : bytes) count += (c & 0xC0) != 0x80;  // every byte that begins a character
  return count;
}

const char* ModeName(v1::MemoryMode mode) {
  switch (mode) {
    case v1::MEMORY_MODE_GENERIC: return "generic";
    case v1::MEMORY_MODE_FETCHED: return "fetched";
    default: return "none";
  }
}

const char* FinishName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_LENGTH: return "length";
    case v1::FINISH_REASON_CANCELLED: return "cancelled";
    default: return "stop";
  }
}

nlohmann::json LeftOutName(v1::LeftOut left_out) {
  switch (left_out) {
    case v1::LEFT_OUT_NOT_ASKED_FOR: return "not_asked_for";
    case v1::LEFT_OUT_NO_RIGHTS: return "no_rights";
    default: return nullptr;
  }
}

// `resolution`: null when the path was not found by text.
nlohmann::json BankOf(const v1::MemoryUsed& used, const v1::Resolution* resolution) {
  nlohmann::json blocks = nlohmann::json::array();
  for (const v1::BlockId& block : used.blocks()) blocks.push_back(fmt::format("{}/{}", block.level(), block.cluster()));
  nlohmann::json distances = nullptr;
  if (resolution != nullptr) {
    distances = nlohmann::json::array();
    for (const v1::ResolvedLevel& level : resolution->levels()) distances.push_back(level.distance());
  }
  return {{"mode", ModeName(used.path().mode())}, {"path", used.path_text()},           {"blocks", blocks}, {"distances", distances},
          {"bank", used.bank_id()},               {"bank_version", used.bank_version()}};
}

nlohmann::json MemoryOf(const v1::RouteGenerateChunk& part) {
  const v1::MemoryUsed& used = part.chunk().start().memory();
  const v1::Resolution* first = part.has_resolution() && part.resolution().has_path() ? &part.resolution() : nullptr;
  nlohmann::json memory = BankOf(used, first);
  if (used.stacked_size() > 0) {
    nlohmann::json banks = {memory};
    banks[0]["left_out"] = LeftOutName(used.left_out());
    for (const v1::MemoryUsed& stacked : used.stacked()) {
      const v1::Resolution* found = nullptr;
      for (const v1::Resolution& other : part.resolution().stacked()) {
        if (other.bank() == stacked.bank_id()) found = &other;
      }
      banks.push_back(BankOf(stacked, found));
      banks.back()["left_out"] = LeftOutName(stacked.left_out());
    }
    memory["banks"] = std::move(banks);
  }
  memory["worker"] = part.worker();
  return memory;
}

}  // namespace

std::string ToText(const nlohmann::json& value) { return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }

void Answer::TakeTokens(const google::protobuf::RepeatedPtrField<v1::GeneratedToken>& tokens, std::vector<Token>* fresh) {
  for (const v1::GeneratedToken& token : tokens) {
    fresh->push_back({token, characters_});
    characters_ += Characters(token.text());
  }
}

nlohmann::json Answer::Add(const v1::RouteGenerateChunk& part) {
  const v1::GenerateChunk& chunk = part.chunk();
  if (chunk.has_start()) {
    memory_ = MemoryOf(part);
    prompt_tokens_ = chunk.start().prompt_tokens();
  }
  std::string text;
  std::vector<Token> fresh;
  if (echo_) {
    for (const v1::GeneratedToken& token : chunk.prompt()) text += token.text();
    TakeTokens(chunk.prompt(), &fresh);
  }
  TakeTokens(chunk.tokens(), &fresh);
  text += chunk.text();
  if (chunk.has_end()) {
    finish_reason_ = FinishName(chunk.end().finish_reason());
    prompt_tokens_ = chunk.end().prompt_tokens();
    completion_tokens_ = chunk.end().completion_tokens();
  }
  text_ += text;
  tokens_.insert(tokens_.end(), fresh.begin(), fresh.end());
  const bool first = !begun_;
  begun_ = true;
  if (!first && text.empty() && !chunk.has_end() && !(logprobs_ && !fresh.empty())) return nullptr;
  nlohmann::json entry = Entry(text, fresh, true);
  if (chat_ && first) entry["delta"]["role"] = "assistant";
  return entry;
}

nlohmann::json Answer::Choice() const { return Entry(text_, tokens_, false); }

nlohmann::json Answer::Entry(const std::string& text, const std::vector<Token>& tokens, bool streamed) const {
  nlohmann::json entry = {{"index", index_}, {"finish_reason", finish_reason_}, {"logprobs", nullptr}};
  if (!chat_) {
    entry["text"] = text;
  } else if (streamed) {
    entry["delta"] = {{"content", text}};
  } else {
    entry["message"] = {{"role", "assistant"}, {"content", text}};
  }
  if (logprobs_) entry["logprobs"] = chat_ ? ChatLogprobs(tokens) : CompletionLogprobs(tokens);
  return entry;
}

nlohmann::json Answer::CompletionLogprobs(const std::vector<Token>& tokens) const {
  nlohmann::json shown = nlohmann::json::array(), values = shown, tops = shown, offsets = shown, ids = shown;
  for (const Token& entry : tokens) {
    const v1::GeneratedToken& token = entry.token;
    shown.push_back(Show(token.text()));
    ids.push_back(token.id());
    offsets.push_back(entry.offset);
    values.push_back(token.has_logprob() ? nlohmann::json(token.logprob()) : nlohmann::json(nullptr));
    nlohmann::json top = nullptr;
    if (token.has_logprob()) {
      top = nlohmann::json::object();
      for (const v1::TokenAlternative& alternative : token.top()) top[Show(alternative.text())] = alternative.logprob();
    }
    tops.push_back(std::move(top));
  }
  return {{"tokens", shown}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}, {"token_ids", ids}};
}

nlohmann::json Answer::ChatLogprobs(const std::vector<Token>& tokens) const {
  nlohmann::json content = nlohmann::json::array();
  for (const Token& entry : tokens) {
    const v1::GeneratedToken& token = entry.token;
    nlohmann::json tops = nlohmann::json::array();
    for (const v1::TokenAlternative& alternative : token.top()) {
      tops.push_back({{"token", Show(alternative.text())}, {"logprob", alternative.logprob()}, {"bytes", Bytes(alternative.text())}});
    }
    content.push_back({{"token", Show(token.text())},
                       {"logprob", token.has_logprob() ? nlohmann::json(token.logprob()) : nlohmann::json(nullptr)},
                       {"bytes", Bytes(token.text())},
                       {"top_logprobs", tops}});
  }
  return {{"content", content}};
}

nlohmann::json Envelope(bool chat, bool streamed, const std::string& id, std::time_t created, const std::string& model) {
  const char* object = !chat ? "text_completion" : streamed ? "chat.completion.chunk" : "chat.completion";
  return {{"id", id}, {"object", object}, {"created", created}, {"model", model}, {"choices", nlohmann::json::array()}};
}

nlohmann::json UsageOf(const std::vector<Answer>& answers) {
  uint64_t prompt = 0, completion = 0;
  for (const Answer& answer : answers) {
    prompt += answer.prompt_tokens();
    completion += answer.completion_tokens();
  }
  return {{"prompt_tokens", prompt}, {"completion_tokens", completion}, {"total_tokens", prompt + completion}};
}

}  // namespace membank
