// SPDX-License-Identifier: Apache-2.0
#include "catalog/row.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/status_macros.h"

namespace kek::catalog {
namespace {

constexpr size_t kCrcSize = 4;

// The fields of each kind are listed once, in Fields() below, and go through a
// Writer or a Reader: the two directions cannot drift apart. Every primitive
// has exactly one byte form, which is what makes the whole canonical.

class Writer {
 public:
  explicit Writer(std::vector<uint8_t>& out) : out_(out) {}

  void Int(uint64_t value, int bytes) {
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) {
      out_.push_back(static_cast<uint8_t>(value >> shift));
    }
  }
  void U32(const uint32_t& value) { Int(value, 4); }
  void U64(const uint64_t& value) { Int(value, 8); }
  void Bool(const bool& value) { Int(value ? 1 : 0, 1); }
  void Algorithm(const AlgorithmId& value) {
    if (value < 0) Fail("algorithm");
    Int(static_cast<uint32_t>(value), 4);
  }
  template <typename E>
  void Enum(const E& value, uint32_t valid, const char* what) {
    const auto number = static_cast<uint32_t>(value);
    if (number >= 32 || ((valid >> number) & 1) == 0) Fail(what);
    Int(number, 1);
  }
  void Time(const absl::Time& value) {
    Int(static_cast<uint64_t>(absl::ToUnixMicros(value)), 8);
  }
  void Duration(const absl::Duration& value) {
    Int(static_cast<uint64_t>(absl::ToInt64Microseconds(value)), 8);
  }
  template <size_t N>
  void Fixed(const std::array<uint8_t, N>& value) {
    out_.insert(out_.end(), value.begin(), value.end());
  }
  template <typename Bytes>  // std::string or std::vector<uint8_t>
  void Sized(const Bytes& value) {
    Int(value.size(), 4);
    // Also keeps the length within its four bytes: no row is that long.
    if (value.size() > kMaxRowSize) return Fail("field length");
    out_.insert(out_.end(), value.begin(), value.end());
  }
  template <typename T, typename F>
  void Optional(const std::optional<T>& value, F field) {
    Bool(value.has_value());
    if (value.has_value()) field(*value);
  }
  void Map(const std::map<std::string, std::string>& value) {
    Int(value.size(), 4);
    for (const auto& [key, text] : value) {
      Sized(key);
      Sized(text);
    }
  }

  const char* failed() const { return failed_; }

 private:
  void Fail(const char* what) { failed_ = what; }

  std::vector<uint8_t>& out_;
  const char* failed_ = nullptr;  // the field no row can hold
};

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> in) : in_(in) {}

  uint64_t Int(int bytes) {
    uint64_t value = 0;
    for (const uint8_t byte : Take(static_cast<size_t>(bytes))) {
      value = value << 8 | byte;
    }
    return value;
  }
  void U32(uint32_t& value) { value = static_cast<uint32_t>(Int(4)); }
  void U64(uint64_t& value) { value = Int(8); }
  void Bool(bool& value) {
    const uint64_t number = Int(1);
    if (number > 1) Fail("boolean is neither 0 nor 1");
    value = number == 1;
  }
  void Algorithm(AlgorithmId& value) {
    const uint64_t number = Int(4);
    if (number > INT32_MAX) Fail("algorithm out of range");
    value = static_cast<AlgorithmId>(number & INT32_MAX);
  }
  template <typename E>
  void Enum(E& value, uint32_t valid, const char* what) {
    const uint64_t number = Int(1);
    if (number >= 32 || ((valid >> number) & 1) == 0) return Fail(what);
    value = static_cast<E>(number);
  }
  void Time(absl::Time& value) {
    value = absl::FromUnixMicros(static_cast<int64_t>(Int(8)));
  }
  void Duration(absl::Duration& value) {
    value = absl::Microseconds(static_cast<int64_t>(Int(8)));
  }
  template <size_t N>
  void Fixed(std::array<uint8_t, N>& value) {
    const std::span<const uint8_t> bytes = Take(N);
    std::copy(bytes.begin(), bytes.end(), value.begin());
  }
  template <typename Bytes>
  void Sized(Bytes& value) {
    const std::span<const uint8_t> bytes = Take(Int(4));
    value.assign(bytes.begin(), bytes.end());
  }
  template <typename T, typename F>
  void Optional(std::optional<T>& value, F field) {
    bool present = false;
    Bool(present);
    if (present) field(value.emplace());
  }
  void Map(std::map<std::string, std::string>& value) {
    // The count is not trusted: each turn takes bytes or fails.
    for (uint64_t count = Int(4); count > 0 && failed_ == nullptr; --count) {
      std::string key, text;
      Sized(key);
      Sized(text);
      if (!value.empty() && key <= value.rbegin()->first) {
        return Fail("labels are not in ascending order");
      }
      value.emplace_hint(value.end(), std::move(key), std::move(text));
    }
  }

  void Fail(const char* why) {
    if (failed_ != nullptr) return;
    failed_ = why;
    failed_at_ = at_;
  }
  void ExpectEnd() {
    if (at_ != in_.size()) Fail("bytes after the last field");
  }
  absl::Status status() const {
    if (failed_ == nullptr) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat("bad row: ", failed_, " at byte ", failed_at_));
  }

 private:
  // The next bytes, or none at all.
  std::span<const uint8_t> Take(uint64_t size) {
    if (failed_ == nullptr && size > in_.size() - at_) {
      Fail("it ends inside a field");
    }
    if (failed_ != nullptr) return {};
    const std::span<const uint8_t> bytes = in_.subspan(at_, size);
    at_ += size;
    return bytes;
  }

  const std::span<const uint8_t> in_;
  size_t at_ = 0;
  const char* failed_ = nullptr;
  size_t failed_at_ = 0;
};

// Sets of allowed enum numbers, as bits.
constexpr uint32_t Bits(std::initializer_list<int> numbers) {
  uint32_t bits = 0;
  for (const int number : numbers) bits |= 1u << number;
  return bits;
}
constexpr uint32_t kPurposes = Bits({1, 5, 6, 7, 9});
constexpr uint32_t kLevels = Bits({1, 2});
constexpr uint32_t kResidencies = Bits({1, 2});
constexpr uint32_t kStates = Bits({1, 2, 3, 4, 5, 6, 7, 8});

// Io is Writer with a const record, or Reader. The order is the format: a field
// is added at the end, under a new kRowFormat, and read only from that on.
template <typename Io>
auto TimeOf(Io& io) {
  return [&io](auto& value) { io.Time(value); };
}
template <typename Io, typename R>
void KeyRingFields(Io& io, R& r) {
  io.U64(r.revision);
  io.Time(r.create_time);
}
template <typename Io, typename R>
void CryptoKeyFields(Io& io, R& r) {
  io.U64(r.revision);
  io.Fixed(r.uuid);
  io.Enum(r.purpose, kPurposes, "purpose");
  io.Algorithm(r.algorithm);
  io.Enum(r.protection_level, kLevels, "protection level");
  io.Enum(r.residency, kResidencies, "residency");
  io.Time(r.create_time);
  io.Map(r.labels);
  io.Duration(r.destroy_scheduled_duration);
  io.Bool(r.import_only);
  io.Optional(r.rotation_period, [&io](auto& value) { io.Duration(value); });
  io.Optional(r.next_rotation_time, TimeOf(io));
  io.U32(r.primary_version);
  io.U64(r.primary_activation);
  io.U32(r.next_version);
  io.U64(r.rotate_after_uses);
}
template <typename Io, typename R>
void CryptoKeyVersionFields(Io& io, R& r) {
  io.U64(r.revision);
  io.Fixed(r.key_uuid);
  io.Enum(r.state, kStates, "state");
  io.Algorithm(r.algorithm);
  io.Enum(r.protection_level, kLevels, "protection level");
  io.Enum(r.residency, kResidencies, "residency");
  io.Time(r.create_time);
  io.Optional(r.generate_time, TimeOf(io));
  io.Optional(r.destroy_time, TimeOf(io));
  io.Optional(r.destroy_event_time, TimeOf(io));
  io.Sized(r.failure_reason);
  io.Sized(r.token);
  io.Sized(r.object_id);
  io.Sized(r.object_label);
  io.Optional(r.canary, [&io](auto& canary) {
    io.Sized(canary.iv);
    io.Sized(canary.ciphertext);
    io.Sized(canary.aad);
    io.Fixed(canary.plaintext_sha256);
  });
  io.Sized(r.attributes);
  io.Bool(r.primary_on_enable);
}

template <typename Io, typename R>
void Fields(Io& io, R& r) {
  using Record = std::remove_const_t<R>;
  if constexpr (kKindOf<Record> == ResourceName::Kind::kKeyRing) {
    KeyRingFields(io, r);
  } else if constexpr (kKindOf<Record> == ResourceName::Kind::kCryptoKey) {
    CryptoKeyFields(io, r);
  } else {
    CryptoKeyVersionFields(io, r);
  }
}

template <typename Record>
absl::StatusOr<std::vector<uint8_t>> Encode(const Record& record) {
  if (record.name.kind() != kKindOf<Record>) {
    return absl::InvalidArgumentError(
        absl::StrCat("the name of a ", KindName(kKindOf<Record>),
                     " is that of a ", KindName(record.name.kind())));
  }
  std::vector<uint8_t> row;
  row.reserve(512);
  Writer writer(row);
  writer.Int(kRowFormat, 1);
  writer.Int(static_cast<uint64_t>(kKindOf<Record>), 1);
  writer.Sized(record.name.ToString());
  Fields(writer, record);
  if (writer.failed() == nullptr && row.size() + kCrcSize <= kMaxRowSize) {
    writer.Int(base::Crc32c(row), kCrcSize);
    return row;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      KindName(kKindOf<Record>), " ", record.name.ToString(),
      " cannot be stored: ",
      writer.failed() != nullptr
          ? absl::StrCat("its ", writer.failed(), " is out of range")
          : absl::StrCat("its row of ", row.size(), " bytes is too long")));
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> EncodeRow(const KeyRing& ring) {
  return Encode(ring);
}
absl::StatusOr<std::vector<uint8_t>> EncodeRow(const CryptoKey& key) {
  return Encode(key);
}
absl::StatusOr<std::vector<uint8_t>> EncodeRow(
    const CryptoKeyVersion& version) {
  return Encode(version);
}

template <typename Record>
absl::StatusOr<Record> DecodeRow(std::span<const uint8_t> row) {
  if (row.size() < 2 + kCrcSize || row.size() > kMaxRowSize) {
    return absl::DataLossError(
        absl::StrCat("bad row: no row has ", row.size(), " bytes"));
  }
  // Before the checksum, whose place is this format's.
  if (row[0] > kRowFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat("row format ", row[0], " is newer than this kekd reads (",
                     kRowFormat, "): it was written by a newer kekd"));
  }
  const std::span<const uint8_t> body = row.first(row.size() - kCrcSize);
  if (Reader(row.last(kCrcSize)).Int(kCrcSize) != base::Crc32c(body)) {
    return absl::DataLossError("bad row: its checksum does not match");
  }
  Reader reader(body);
  if (reader.Int(1) == 0) reader.Fail("there is no format 0");
  if (reader.Int(1) != static_cast<uint64_t>(kKindOf<Record>)) {
    reader.Fail("it is of another kind");
  }
  std::string text;
  reader.Sized(text);
  RETURN_IF_ERROR(reader.status());
  absl::StatusOr<ResourceName> name =
      ResourceName::Parse(text, kKindOf<Record>);
  if (!name.ok()) {
    return absl::DataLossError(
        absl::StrCat("bad row: ", name.status().message()));
  }
  Record record{.name = *std::move(name)};
  Fields(reader, record);
  reader.ExpectEnd();
  RETURN_IF_ERROR(reader.status());
  return record;
}

template <typename Record>
absl::StatusOr<Record> DecodeRowOf(const ResourceName& name,
                                   std::span<const uint8_t> row) {
  absl::StatusOr<Record> record = DecodeRow<Record>(row);
  if (!record.ok()) {
    return absl::Status(
        record.status().code(),
        absl::StrCat(KindName(name.kind()), " ", name.ToString(), ": ",
                     record.status().message()));
  }
  if (!(record->name == name)) {
    return absl::DataLossError(
        absl::StrCat(KindName(name.kind()), " ", name.ToString(),
                     ": its row is that of ", record->name.ToString()));
  }
  return record;
}

template absl::StatusOr<KeyRing> DecodeRow(std::span<const uint8_t>);
template absl::StatusOr<CryptoKey> DecodeRow(std::span<const uint8_t>);
template absl::StatusOr<CryptoKeyVersion> DecodeRow(std::span<const uint8_t>);
template absl::StatusOr<KeyRing> DecodeRowOf(const ResourceName&,
                                             std::span<const uint8_t>);
template absl::StatusOr<CryptoKey> DecodeRowOf(const ResourceName&,
                                               std::span<const uint8_t>);
template absl::StatusOr<CryptoKeyVersion> DecodeRowOf(const ResourceName&,
                                                      std::span<const uint8_t>);

}  // namespace kek::catalog
