// The wire's answers -> the JSON of OpenAI's API. JSON begins here. One thread each.
#pragma once

#include <ctime>
#include <string>
#include <vector>

#include "membank/v1/router.pb.h"
#include "nlohmann/json.hpp"

namespace membank {

// JSON text; bytes that are not UTF-8 become U+FFFD.
std::string ToText(const nlohmann::json& value);

// Gathers one prompt's answer. Streamed or not, every part of an answer goes through it.
class Answer {
 public:
  Answer(int index, bool chat, bool logprobs, bool echo) : index_(index), chat_(chat), logprobs_(logprobs), echo_(echo) {}

  // Takes a part; returns the entry of "choices" for a streamed chunk, null when there is nothing new to show.
  nlohmann::json Add(const v1::RouteGenerateChunk& part);
  // The entry of "choices" with everything since the beginning.
  nlohmann::json Choice() const;
  // {"mode", "path", "blocks", "distances", "bank", "bank_version", "worker"} of the first bank; where banks are stacked on it, "banks" has the same
  // of each with "left_out": null, "not_asked_for" or "no_rights". Null before the first part.
  const nlohmann::json& memory() const { return memory_; }
  uint32_t prompt_tokens() const { return prompt_tokens_; }
  uint32_t completion_tokens() const { return completion_tokens_; }

 private:
  struct Token {
    v1::GeneratedToken token;
    size_t offset;  // in characters
  };
  nlohmann::json Entry(const std::string& text, const std::vector<Token>& tokens, bool streamed) const;
  nlohmann::json CompletionLogprobs(const std::vector<Token>& tokens) const;
  nlohmann::json ChatLogprobs(const std::vector<Token>& tokens) const;
  void TakeTokens(const google::protobuf::RepeatedPtrField<v1::GeneratedToken>& tokens, std::vector<Token>* fresh);

  const int index_;
  const bool chat_, logprobs_, echo_;
  std::string text_;
  std::vector<Token> tokens_;
  size_t characters_ = 0;
  bool begun_ = false;
  nlohmann::json finish_reason_, memory_;
  uint32_t prompt_tokens_ = 0, completion_tokens_ = 0;
};

// The object around "choices": id, object, created, model; the same for every chunk of a stream.
nlohmann::json Envelope(bool chat, bool streamed, const std::string& id, std::time_t created, const std::string& model);

nlohmann::json UsageOf(const std::vector<Answer>& answers);

}  // namespace membank
