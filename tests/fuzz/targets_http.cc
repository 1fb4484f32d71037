#include "router/http/openai_request.h"
#include "tests/fuzz/fuzz_target.h"

namespace membank::fuzz {
namespace {

// A byte that chooses the resource, then the body.
void RunHttpBody(std::string_view input) {
  Pieces pieces(input);
  const uint8_t resource = pieces.Byte();
  const std::string body(pieces.Rest());
  switch (resource % 6) {
    case 0: (void)ParseCompletionRequest(body).ok(); break;
    case 1: (void)ParseChatRequest(body, true, *ChatTemplate::ByName("chatml")).ok(); break;
    case 2: (void)ParseChatRequest(body, false, *ChatTemplate::ByName("gemma")).ok(); break;
    case 3: (void)ParseEmbeddingRequest(body).ok(); break;
    case 4: (void)ParseTokenizeRequest(body).ok(); break;
    case 5: (void)ParseDetokenizeRequest(body).ok(); break;
  }
}

std::vector<std::string> HttpBodySeeds() {
  const std::string nested = NestedLists(100000);
  return {std::string(1, '\0') + R"({"model":"m","prompt":"a b","max_tokens":3,"temperature":0.5,"top_p":0.9,"stop":["x"],"logprobs":2,"echo":true,)"
              R"("seed":1,"stream":true,"stream_options":{"include_usage":true},"logit_bias":{"1":2},"n":1,"memory":{"mode":"fetched","path":"1.2"}})",
          std::string(1, '\0') + R"({"prompt":[[1,2],[3]],"max_tokens":0,"echo":true,"memory":{"retrieve_on":"t","levels":[1,2]}})",
          std::string(1, '\0') + R"({"prompt":)" + nested + "}",
          "\1" R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"u"}]}],"top_logprobs":2,"logprobs":true})",
          "\1" R"({"messages":)" + nested + "}",
          "\3" R"({"input":["a","b"],"encoding_format":"base64"})",
          "\4" R"({"prompt":"a","parse_special":true})",
          "\5" R"({"tokens":[1,2,3],"keep_special":true})",
          "\5" R"({"tokens":)" + nested + "}"};
}

}  // namespace

std::vector<Target> HttpTargets() { return {{"http_body", RunHttpBody, HttpBodySeeds}}; }

}  // namespace membank::fuzz
