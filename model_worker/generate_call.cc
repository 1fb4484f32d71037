#include "model_worker/generate_call.h"

#include "common/rpc/status.h"

namespace membank {
namespace {

std::string TokenBytes(const Tokenizer& tokenizer, int32_t id) {
  return tokenizer.DecodeNext(id, /*skip_special=*/false).value_or("");
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return v1::FINISH_REASON_STOP;
    case FinishReason::kLength: return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled: return v1::FINISH_REASON_CANCELLED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

void LeaveOut(v1::LeftOut why, v1::MemoryUsed* used) {
  used->clear_blocks();
  used->set_left_out(why);
}

void CallTicket::Set(uint64_t ticket) {
  absl::MutexLock lock(&mu_);
  ticket_ = ticket;
  if (cancelled_) engine_->Cancel(ticket);
}

void CallTicket::Cancel() {
  absl::MutexLock lock(&mu_);
  cancelled_ = true;
  if (ticket_ != 0) engine_->Cancel(ticket_);
}

GenerateCall::GenerateCall(Reactor* reactor, const Tokenizer* tokenizer, v1::GenerateStart start) : tokenizer_(tokenizer), reactor_(reactor) {
  *pending_.mutable_start() = std::move(start);
}

void GenerateCall::Fill(const TokenOutput& token, v1::GeneratedToken* out) const {
  out->set_id(token.id);
  out->set_text(TokenBytes(*tokenizer_, token.id));
  if (token.logprob.has_value()) out->set_logprob(*token.logprob);
  for (const TokenAlternative& alternative : token.top) {
    v1::TokenAlternative* other = out->add_top();
    other->set_id(alternative.id);
    other->set_text(TokenBytes(*tokenizer_, alternative.id));
    other->set_logprob(alternative.logprob);
  }
}

void GenerateCall::OnLeftOut(size_t bank) {
  absl::MutexLock lock(&mu_);
  LeaveOut(v1::LEFT_OUT_NO_RIGHTS, pending_.mutable_start()->mutable_memory()->mutable_stacked(static_cast<int>(bank) - 1));
}

void GenerateCall::OnOutput(GenerateOutput output) {
  absl::MutexLock lock(&mu_);
  for (const TokenOutput& token : output.prompt) Fill(token, pending_.add_prompt());
  for (const TokenOutput& token : output.tokens) Fill(token, pending_.add_tokens());
  pending_.mutable_text()->append(output.text);
  has_pending_ = true;
  Proceed();
}

void GenerateCall::OnEnd(const absl::Status& status, const GenerateSummary& summary) {
  absl::MutexLock lock(&mu_);
  ended_ = true;
  end_status_ = status;
  if (status.ok()) {
    v1::GenerateEnd* end = pending_.mutable_end();
    end->set_finish_reason(ToProto(summary.reason));
    end->set_prompt_tokens(summary.prompt_tokens);
    end->set_completion_tokens(summary.completion_tokens);
    end->set_queue_ms(summary.queue_ms);
    end->set_first_token_ms(summary.first_token_ms);
    end->set_total_ms(summary.total_ms);
    has_pending_ = true;
  }
  Proceed();
}

void GenerateCall::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mu_);
  writing_ = false;
  if (!ok) broken_ = true;
  Proceed();
}

// Writes what is there, or finishes when the end is there and nothing is left to write.
void GenerateCall::Proceed() {
  if (reactor_ == nullptr || writing_) return;
  if (has_pending_ && !broken_) {
    in_flight_.Swap(&pending_);
    pending_.Clear();
    has_pending_ = false;
    writing_ = true;
    reactor_->StartWrite(&in_flight_);
    return;
  }
  if (!ended_) return;
  std::exchange(reactor_, nullptr)->Finish(ToGrpc(end_status_));
}

}  // namespace membank
