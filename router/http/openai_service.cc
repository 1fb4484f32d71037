#include "router/http/openai_service.h"

#include <set>

#include "absl/strings/escaping.h"
#include "common/base/status_macros.h"
#include "router/http/http_error.h"

namespace membank {
namespace {

HttpResponse JsonResponse(const nlohmann::json& value) {
  HttpResponse response;
  response.body = ToText(value);
  return response;
}

nlohmann::json BankFacts(const v1::BankSpec& bank, const std::string& version) {
  return {{"bank", bank.bank_id()}, {"bank_version", version}, {"fan_out", bank.fan_out()}, {"depth", bank.widths_size()}};
}

std::vector<Answer> EmptyAnswers(const CompletionRequest& request) {
  std::vector<Answer> answers;
  const v1::Sampling& sampling = request.prompts.front().sampling();
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    answers.emplace_back(static_cast<int>(i), request.chat, sampling.has_logprobs(), sampling.echo());
  }
  return answers;
}

// A streamed answer: the prompts one after another, the first of them already running.
class StreamedAnswer {
 public:
  StreamedAnswer(Router& router, CompletionRequest request, std::shared_ptr<CallScope> scope, std::unique_ptr<Generation> first,
                 std::shared_ptr<void> watch, nlohmann::json envelope)
      : router_(router), request_(std::move(request)), scope_(std::move(scope)), current_(std::move(first)), watch_(std::move(watch)),
        envelope_(std::move(envelope)), answers_(EmptyAnswers(request_)) {}

  void Write(const HttpWriter& write) {
    absl::Status status;
    for (size_t i = 0; i < answers_.size() && status.ok(); ++i) status = WriteOne(i, write);
    if (!status.ok()) {
      write("data: " + ErrorBody(status) + "\n\n");
      return;
    }
    if (request_.include_usage) {
      nlohmann::json last = envelope_;
      last["usage"] = UsageOf(answers_);
      write("data: " + ToText(last) + "\n\n");
    }
    write("data: [DONE]\n\n");
  }

 private:
  absl::Status WriteOne(size_t index, const HttpWriter& write) {
    if (!current_) {
      ASSIGN_OR_RETURN(current_, router_.Generate(*scope_, request_.prompts[index]));
    }
    v1::RouteGenerateChunk part;
    while (true) {
      ASSIGN_OR_RETURN(const bool more, current_->Next(&part));
      if (!more) break;
      nlohmann::json entry = answers_[index].Add(part);
      if (entry.is_null()) continue;
      nlohmann::json event = envelope_;
      event["choices"].push_back(std::move(entry));
      if (part.chunk().has_start()) event["memory"] = answers_[index].memory();
      if (!write("data: " + ToText(event) + "\n\n")) return absl::CancelledError("the client has gone away");
    }
    current_.reset();
    return absl::OkStatus();
  }

  Router& router_;
  const CompletionRequest request_;
  const std::shared_ptr<CallScope> scope_;
  std::unique_ptr<Generation> current_;
  const std::shared_ptr<void> watch_;  // destroyed before what its callback uses
  const nlohmann::json envelope_;
  std::vector<Answer> answers_;
};

}  // namespace

std::vector<HttpRoute> OpenAiService::Routes() {
  return {
      {"GET", "/v1/models", [this](const HttpRequest&) { return Models(); }},
      {"POST", "/v1/completions", [this](const HttpRequest& r) { return Complete(r, ParseCompletionRequest(r.body)); }},
      {"POST", "/v1/chat/completions",
       [this](const HttpRequest& r) {
         const absl::StatusOr<ChatTemplate> chat = ServedChatTemplate();
         return chat.ok() ? Complete(r, ParseChatRequest(r.body, router_.can_resolve(), *chat)) : ErrorResponse(chat.status());
       }},
      {"POST", "/v1/embeddings", [this](const HttpRequest& r) { return Embeddings(r); }},
      {"POST", "/tokenize", [this](const HttpRequest& r) { return Tokenize(r); }},
      {"POST", "/detokenize", [this](const HttpRequest& r) { return Detokenize(r); }},
  };
}

std::shared_ptr<CallScope> OpenAiService::Scope() const {
  return std::make_shared<CallScope>(std::chrono::system_clock::now() + request_timeout_);
}

std::string OpenAiService::NewId(const char* prefix) {
  return fmt::format("{}-{:x}{:04x}", prefix, std::chrono::system_clock::now().time_since_epoch().count(), next_id_++ & 0xffff);
}

HttpResponse OpenAiService::Models() const {
  nlohmann::json list = nlohmann::json::array();
  std::set<std::string> seen;
  const v1::RouterStatus router_status = router_.Status();
  for (const v1::WorkerState& worker : router_status.workers()) {
    const v1::WorkerStatus& status = worker.status();
    if (!worker.healthy() || !seen.insert(status.model()).second) continue;
    nlohmann::json model = {{"id", status.model()}, {"object", "model"}, {"created", 0}, {"owned_by", "membank"}, {"max_model_len", status.context()}};
    if (status.has_bank()) model["memory"] = BankFacts(status.bank(), status.bank_version());
    for (const v1::StackedBank& stacked : status.stacked()) model["memory"]["stacked"].push_back(BankFacts(stacked.bank(), stacked.bank_version()));
    list.push_back(std::move(model));
  }
  return JsonResponse({{"object", "list"}, {"data", list}});
}

absl::StatusOr<v1::WorkerStatus> OpenAiService::HealthyWorker() const {
  const v1::RouterStatus status = router_.Status();
  for (const v1::WorkerState& worker : status.workers()) {
    if (worker.healthy()) return worker.status();
  }
  RETURN_IF_ERROR(router_.Ready());
  return Unavailable("no worker can take the request");
}

// A router serves one anchor: it answers whatever model the client names, and the reply says which it was.
absl::StatusOr<std::string> OpenAiService::ServedModel() const {
  ASSIGN_OR_RETURN(const v1::WorkerStatus worker, HealthyWorker());
  return worker.model();
}

absl::StatusOr<ChatTemplate> OpenAiService::ServedChatTemplate() const {
  ASSIGN_OR_RETURN(const v1::WorkerStatus worker, HealthyWorker());
  if (!worker.chat_template().empty()) return ChatTemplate::ByName(worker.chat_template(), worker.chat_system());
  return Unimplemented("the chat template of the model '{}' is none of {}; start its worker with --chat-template and one of these", worker.model(),
                       ChatTemplate::kNames);
}

HttpResponse OpenAiService::Complete(const HttpRequest& request, absl::StatusOr<CompletionRequest> parsed) {
  if (!parsed.ok()) return ErrorResponse(parsed.status());
  const absl::StatusOr<std::string> model = ServedModel();
  if (!model.ok()) return ErrorResponse(model.status());
  std::shared_ptr<CallScope> scope = Scope();
  std::shared_ptr<void> watch = request.when_gone([scope] { scope->Cancel(); });
  const bool chat = parsed->chat;
  nlohmann::json envelope = Envelope(chat, parsed->stream, NewId(chat ? "chatcmpl" : "cmpl"), std::time(nullptr), *model);

  if (parsed->stream) {
    // Errors before the first part still have a status of their own; later ones come as an event.
    absl::StatusOr<std::unique_ptr<Generation>> first = router_.Generate(*scope, parsed->prompts.front());
    if (!first.ok()) return ErrorResponse(first.status());
    auto answer = std::make_shared<StreamedAnswer>(router_, *std::move(parsed), std::move(scope), *std::move(first), std::move(watch),
                                                   std::move(envelope));
    HttpResponse response;
    response.content_type = "text/event-stream";
    response.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
    response.stream = [answer](const HttpWriter& write) { answer->Write(write); };
    return response;
  }

  std::vector<Answer> answers = EmptyAnswers(*parsed);
  if (const absl::Status status = CompleteAll(*scope, *parsed, &answers); !status.ok()) return ErrorResponse(status);
  for (const Answer& answer : answers) envelope["choices"].push_back(answer.Choice());
  envelope["usage"] = UsageOf(answers);
  envelope["memory"] = answers.front().memory();
  for (size_t i = 0; answers.size() > 1 && i < answers.size(); ++i) envelope["choices"][i]["memory"] = answers[i].memory();
  return JsonResponse(envelope);
}

// All prompts at once, so that the workers can batch them.
absl::Status OpenAiService::CompleteAll(CallScope& scope, const CompletionRequest& request, std::vector<Answer>* answers) {
  std::vector<absl::Status> statuses(request.prompts.size());
  ParallelFor(pool_, request.prompts.size(), [&](size_t i) {
    statuses[i] = [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::unique_ptr<Generation> generation, router_.Generate(scope, request.prompts[i]));
      v1::RouteGenerateChunk part;
      while (true) {
        ASSIGN_OR_RETURN(const bool more, generation->Next(&part));
        if (!more) return absl::OkStatus();
        (*answers)[i].Add(part);
      }
    }();
  });
  for (size_t i = 0; i < statuses.size(); ++i) {
    if (!statuses[i].ok()) return statuses.size() == 1 ? statuses[i] : Annotate(statuses[i], fmt::format("prompt {}", i));
  }
  return absl::OkStatus();
}

HttpResponse OpenAiService::Embeddings(const HttpRequest& request) {
  const absl::StatusOr<EmbeddingRequest> parsed = ParseEmbeddingRequest(request.body);
  if (!parsed.ok()) return ErrorResponse(parsed.status());
  const absl::StatusOr<std::vector<std::vector<float>>> vectors = router_.Embed(*Scope(), parsed->texts);
  if (!vectors.ok()) return ErrorResponse(vectors.status());
  nlohmann::json data = nlohmann::json::array();
  for (size_t i = 0; i < vectors->size(); ++i) {
    const std::vector<float>& vector = (*vectors)[i];
    nlohmann::json embedding = vector;
    if (parsed->base64) {
      embedding = absl::Base64Escape({reinterpret_cast<const char*>(vector.data()), vector.size() * sizeof(float)});
    }
    data.push_back({{"object", "embedding"}, {"index", i}, {"embedding", std::move(embedding)}});
  }
  return JsonResponse({{"object", "list"}, {"model", parsed->model}, {"data", data}});
}

HttpResponse OpenAiService::Tokenize(const HttpRequest& request) {
  const absl::StatusOr<v1::TokenizeRequest> parsed = ParseTokenizeRequest(request.body);
  if (!parsed.ok()) return ErrorResponse(parsed.status());
  const absl::StatusOr<v1::TokenizeReply> reply = router_.Tokenize(*Scope(), *parsed);
  if (!reply.ok()) return ErrorResponse(reply.status());
  const std::vector<int32_t> ids(reply->ids().begin(), reply->ids().end());
  return JsonResponse({{"tokens", ids}, {"count", ids.size()}});
}

HttpResponse OpenAiService::Detokenize(const HttpRequest& request) {
  const absl::StatusOr<v1::DetokenizeRequest> parsed = ParseDetokenizeRequest(request.body);
  if (!parsed.ok()) return ErrorResponse(parsed.status());
  const absl::StatusOr<v1::DetokenizeReply> reply = router_.Detokenize(*Scope(), *parsed);
  if (!reply.ok()) return ErrorResponse(reply.status());
  return JsonResponse({{"prompt", reply->text()}});
}

}  // namespace membank
