// SPDX-License-Identifier: Apache-2.0
// Any text: the parser refuses it without echoing it at length, or gives a name
// whose text is the very same and whose parents and children agree with it.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "catalog/resource_name.h"

namespace {

using kek::catalog::ResourceName;

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckName(const ResourceName& name) {
  const auto again = ResourceName::Parse(name.ToString());
  Require(again.ok() && *again == name && again->kind() == name.kind() &&
          again->version() == name.version() && again->id() == name.id());
  Require(ResourceName::Parse(name.ToString(), name.kind()).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  auto name = ResourceName::Parse(text);
  if (!name.ok()) {
    Require(absl::IsInvalidArgument(name.status()));
    Require(name.status().message().size() < 1024);
    return 0;
  }
  Require(name->ToString() == text);
  CheckName(*name);
  Require((name->version() != 0) ==
          (name->kind() == ResourceName::Kind::kCryptoKeyVersion));
  for (ResourceName at = *name; at.kind() != ResourceName::Kind::kLocation;) {
    const ResourceName parent = at.Parent();
    CheckName(parent);
    Require(at.ToString().size() > parent.ToString().size() + 1 &&
            at.ToString().compare(0, parent.ToString().size() + 1,
                                  parent.ToString() + "/") == 0);
    const auto child = parent.Child(at.id());
    Require(child.ok() && *child == at);
    at = parent;
  }
  // Bytes as an id: accepted only if the child parses again.
  const auto child = name->Child(text.substr(0, 64));
  if (child.ok()) CheckName(*child);
  return 0;
}
