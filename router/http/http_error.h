// Errors in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}}, with the HTTP status of the one table in
// common/rpc/status.h. Pure functions.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "router/http/http_server.h"

namespace membank {

// `param` names the field of the request that was wrong; empty = null.
HttpResponse ErrorResponse(int http_status, const std::string& message, const std::string& param = "");
HttpResponse ErrorResponse(const absl::Status& status);
// The JSON text alone, for an error in the middle of a stream.
std::string ErrorBody(const absl::Status& status);

// An INVALID_ARGUMENT that names the field it is about.
absl::Status ParamError(const std::string& param, const std::string& message);

}  // namespace membank
