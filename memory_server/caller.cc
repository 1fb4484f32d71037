#include "memory_server/caller.h"

#include "grpc/grpc_security_constants.h"

namespace membank {

Caller CallerOf(const grpc::ServerContextBase& context) {
  Caller caller;
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr || !peer->IsPeerAuthenticated()) return caller;
  for (const grpc::string_ref& name : peer->FindPropertyValues(GRPC_X509_SAN_PROPERTY_NAME)) caller.names.emplace_back(name.data(), name.size());
  return caller;
}

}  // namespace membank
