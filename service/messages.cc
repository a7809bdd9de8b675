// SPDX-License-Identifier: Apache-2.0
#include "service/messages.h"

#include <string>

#include <google/protobuf/descriptor.h>

#include "base/secret_bytes.h"

namespace kek::service {
namespace {

using google::protobuf::FieldDescriptor;

// Wipes a string that protobuf owns, in place. Protobuf gives no mutable access
// to a field's present buffer by reflection, only a reference to it; an unset
// field refers to a constant that all messages share and that must not be
// written.
void WipeInPlace(const std::string& text) noexcept {
  if (!text.empty()) base::Wipe(const_cast<std::string&>(text));
}

}  // namespace

void WipeBytesFields(google::protobuf::Message& message) noexcept {
  const google::protobuf::Descriptor* type = message.GetDescriptor();
  const google::protobuf::Reflection* reflection = message.GetReflection();
  std::string scratch;
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->is_map()) continue;
    if (field->type() == FieldDescriptor::TYPE_BYTES) {
      if (field->is_repeated()) {
        for (int k = 0; k < reflection->FieldSize(message, field); ++k) {
          WipeInPlace(reflection->GetRepeatedStringReference(message, field, k,
                                                             &scratch));
        }
      } else {
        WipeInPlace(reflection->GetStringReference(message, field, &scratch));
      }
    } else if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
      if (field->is_repeated()) {
        for (int k = 0; k < reflection->FieldSize(message, field); ++k) {
          WipeBytesFields(
              *reflection->MutableRepeatedMessage(&message, field, k));
        }
      } else if (reflection->HasField(message, field)) {
        WipeBytesFields(*reflection->MutableMessage(&message, field));
      }
    }
  }
}

}  // namespace kek::service
