// What the router's /readyz stands on: a healthy worker; the details list the workers.
#pragma once

#include "common/rpc/admin_server.h"
#include "router/router_core.h"

namespace membank {

Readiness CheckReadiness(const Router& router);

}  // namespace membank
