// The router's HTTP surface: OpenAI's endpoints over the Router, and the admin endpoints. A handler checks, calls, maps the error and fills
// the reply. Owned by main or a test; handlers run on the HTTP server's threads. Must outlive the servers that its routes were given to.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "common/base/thread_pool.h"
#include "router/http/http_server.h"
#include "router/http/openai_reply.h"
#include "router/http/openai_request.h"
#include "router/router_core.h"

namespace membank {

class OpenAiService {
 public:
  // `request_timeout`: deadline of a request.
  OpenAiService(Router& router, std::chrono::milliseconds request_timeout) : router_(router), request_timeout_(request_timeout) {}

  // GET /v1/models, POST /v1/completions, /v1/chat/completions, /v1/embeddings, /tokenize, /detokenize.
  std::vector<HttpRoute> Routes();

 private:
  HttpResponse Models() const;
  HttpResponse Complete(const HttpRequest& request, absl::StatusOr<CompletionRequest> parsed);
  HttpResponse Embeddings(const HttpRequest& request);
  HttpResponse Tokenize(const HttpRequest& request);
  HttpResponse Detokenize(const HttpRequest& request);

  absl::StatusOr<v1::WorkerStatus> HealthyWorker() const;
  absl::StatusOr<std::string> ServedModel() const;
  absl::StatusOr<ChatTemplate> ServedChatTemplate() const;
  absl::Status CompleteAll(CallScope& scope, const CompletionRequest& request, std::vector<Answer>* answers);
  std::shared_ptr<CallScope> Scope() const;
  std::string NewId(const char* prefix);

  Router& router_;
  const std::chrono::milliseconds request_timeout_;
  std::atomic<uint64_t> next_id_{0};
  ThreadPool pool_{32};  // for the prompts of one request beyond its first
};

}  // namespace membank
