// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "catalog/records.h"
#include "catalog/resource_name.h"

namespace kek::catalog {

// A row is a record as the catalog keeps it: one canonical byte string, the
// same in every back end, which docs/catalog-format.md specifies. Equal records
// of one format have equal rows, and a row that decodes encodes to itself, so
// that the bytes can be compared, hashed and authenticated without being
// understood. Functions without state; thread-safe.

// The format that is written. Older ones are read.
inline constexpr uint8_t kRowFormat = 1;
inline constexpr size_t kMaxRowSize = 1 << 20;

// The kind of name a record has, which is also the kind in its row.
template <typename Record>
inline constexpr ResourceName::Kind kKindOf = ResourceName::Kind::kLocation;
template <>
inline constexpr ResourceName::Kind kKindOf<KeyRing> =
    ResourceName::Kind::kKeyRing;
template <>
inline constexpr ResourceName::Kind kKindOf<CryptoKey> =
    ResourceName::Kind::kCryptoKey;
template <>
inline constexpr ResourceName::Kind kKindOf<CryptoKeyVersion> =
    ResourceName::Kind::kCryptoKeyVersion;

// INVALID_ARGUMENT: the name is not of the record's kind, an enum has no such
// value, or the row would be longer than kMaxRowSize. Times are cut to
// microseconds.
absl::StatusOr<std::vector<uint8_t>> EncodeRow(const KeyRing& ring);
absl::StatusOr<std::vector<uint8_t>> EncodeRow(const CryptoKey& key);
absl::StatusOr<std::vector<uint8_t>> EncodeRow(const CryptoKeyVersion& version);

// Total: any bytes give a record or an error, and only canonical bytes give a
// record. DATA_LOSS says what is wrong with the row and where;
// FAILED_PRECONDITION: a newer kekd wrote it. Record is KeyRing, CryptoKey or
// CryptoKeyVersion.
template <typename Record>
absl::StatusOr<Record> DecodeRow(std::span<const uint8_t> row);
// The same for the row that was stored as name's: another record's row in its
// place is DATA_LOSS, and every error begins with the name.
template <typename Record>
absl::StatusOr<Record> DecodeRowOf(const ResourceName& name,
                                   std::span<const uint8_t> row);

}  // namespace kek::catalog
