#include "launcher/agent/host_network.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>

namespace moesaic {
namespace {

in_addr_t AddressOf(const sockaddr* address) {
  return reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr;
}

std::string Subnet(in_addr_t address, in_addr_t mask) {
  const in_addr network = {address & mask};
  char text[INET_ADDRSTRLEN] = {};
  inet_ntop(AF_INET, &network, text, sizeof(text));
  return fmt::format("{}/{}", text, std::popcount(mask));
}

}  // namespace

absl::StatusOr<std::string> SubnetOf(const std::string& host) {
  addrinfo hints = {};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0) {
    return absl::NotFoundError(fmt::format("{}: {}", host, gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> wanted(found, &freeaddrinfo);
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return absl::InternalError(strerror(errno));
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> interfaces(all, &freeifaddrs);
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    const in_addr_t address = AddressOf(one->ai_addr);
    for (const ifaddrs* interface = all; interface != nullptr; interface = interface->ifa_next) {
      if (interface->ifa_addr == nullptr || interface->ifa_netmask == nullptr ||
          interface->ifa_addr->sa_family != AF_INET || AddressOf(interface->ifa_addr) != address) {
        continue;
      }
      return Subnet(address, AddressOf(interface->ifa_netmask));
    }
  }
  return absl::NotFoundError(fmt::format("no interface of this host has the address {}", host));
}

std::string HostOf(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  return host;
}

}  // namespace moesaic
