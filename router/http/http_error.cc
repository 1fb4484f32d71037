#include "router/http/http_error.h"

#include "common/rpc/status.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

constexpr char kParamPayload[] = "membank/http/param";

const char* ErrorType(int http_status) {
  switch (http_status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    default: return http_status < 500 ? "invalid_request_error" : "server_error";
  }
}

std::string Body(int http_status, const std::string& message, const std::string& param, const std::string& code) {
  nlohmann::json error = {{"message", message}, {"type", ErrorType(http_status)}, {"param", nullptr}, {"code", nullptr}};
  if (!param.empty()) error["param"] = param;
  if (!code.empty()) error["code"] = code;
  return nlohmann::json{{"error", error}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string ParamOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kParamPayload);
  return payload ? std::string(*payload) : "";
}

HttpResponse Response(int http_status, std::string body) {
  HttpResponse response;
  response.status = http_status;
  response.body = std::move(body);
  if (http_status == 429 || http_status == 503) response.headers.push_back({"Retry-After", "1"});
  return response;
}

std::string Code(const absl::Status& status) { return std::string(absl::StatusCodeToString(status.code())); }

}  // namespace

HttpResponse ErrorResponse(int http_status, const std::string& message, const std::string& param) {
  return Response(http_status, Body(http_status, message, param, ""));
}

HttpResponse ErrorResponse(const absl::Status& status) {
  const int http_status = HttpStatus(status.code());
  return Response(http_status, Body(http_status, std::string(status.message()), ParamOf(status), Code(status)));
}

std::string ErrorBody(const absl::Status& status) {
  return Body(HttpStatus(status.code()), std::string(status.message()), ParamOf(status), Code(status));
}

absl::Status ParamError(const std::string& param, const std::string& message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kParamPayload, absl::Cord(param));
  return status;
}

}  // namespace membank
