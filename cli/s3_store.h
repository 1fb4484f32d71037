// Objects under a prefix of an S3 bucket, or of anything that speaks its protocol: HTTP by libcurl, requests signed by libcurl (SigV4), every
// upload with its CRC32C for the other side to check. As Amazon's own tools it reads AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
// AWS_SESSION_TOKEN, AWS_REGION or AWS_DEFAULT_REGION (default us-east-1) and AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL. What may succeed later
// (connection, 429, 5xx) is tried again for about a minute.
#pragma once

#include "cli/object_store.h"

namespace membank {

absl::StatusOr<std::unique_ptr<ObjectStore>> OpenS3Store(const std::string& place);

}  // namespace membank
