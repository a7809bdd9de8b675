// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/metrics.h"
#include "base/secret_bytes.h"
#include "base/sync.h"
#include "pkcs11/error.h"
#include "pkcs11/pin_source.h"
#include "pkcs11/token_profile.h"

namespace kek::pkcs11 {

// How a key object is found on a token again. CKA_ID identifies it; the label
// is for people.
struct KeyIdentity {
  std::vector<uint8_t> id;  // CKA_ID: 16 random bytes
  std::string label;        // CKA_LABEL, ASCII, at most 40 bytes
};

// The result of an AES-256-GCM encryption by the token.
struct Sealed {
  std::vector<uint8_t> iv;          // 12 bytes, or 16 in IvMode::kTokenAppend
  std::vector<uint8_t> ciphertext;  // ciphertext, then the 16-byte tag
};

// A ciphertext made under a key right after its generation. Whoever can open it
// holds that key: it is what proves a handle.
struct Canary {
  Sealed sealed;
  std::vector<uint8_t> aad;
  std::array<uint8_t, 32> plaintext_sha256;
};

// Attributes of a key object as the token reports them. What a token does not
// know is absent.
struct KeyAttributes {
  std::optional<bool> sensitive, extractable, always_sensitive,
      never_extractable, local, token, is_private, modifiable, copyable,
      destroyable, encrypt, decrypt, wrap, unwrap, sign, derive;
  std::optional<uint64_t> key_type, value_len, key_gen_mechanism;
  std::vector<uint8_t> check_value;  // CKA_CHECK_VALUE, a hint only
  std::vector<std::string> dropped;  // attributes the token refused in the
                                     // template, in the order they were dropped
  // "CKA_SENSITIVE=true CKA_EXTRACTABLE=false ...", for audit records.
  std::string ToString() const;
};

// One object of a sweep of the token (Token::ListKeys).
struct ObjectInfo {
  std::vector<uint8_t> id;
  std::string label;
  bool usable = false;  // an AES secret key with id and label; what kill -9
                        // leaves half-made has neither
};

struct EncryptOptions {
  // Decrypt the fresh ciphertext on the token and compare before returning it.
  // Catches flips, not a wrong key: see Prove.
  bool verify = true;
};

// Key models one AES key object on the token: its identity, its canary, and the
// handle last proven to be it. It survives re-login and re-initialisation: the
// token resolves it anew in the next generation, by one sweep of all objects
// and its canary, before it is used again. Shared, thread-safe; made by
// Token::AddKey only.
class Key;

enum class TokenState {
  kStarting,  // not logged in yet
  kReady,     // logged in, and the last real work succeeded
  kDegraded,  // the breaker is open: work fails fast, one probe at a time tries
              // the token
  kAbsent,    // no such token, or the library does not answer; retried with
              // back-off
  kPinRefused,  // the PIN was refused once; never tried again until the PIN
                // source changes or RetryLogin
};

// What Token knows of itself without asking the HSM.
struct TokenHealth {
  TokenState state = TokenState::kStarting;
  absl::Status last_error;  // OK in kReady
  uint64_t generation =
      0;  // grows with every login and every re-initialisation
  // Steady time of the last success of real HSM work (an operation or a
  // canary).
  std::optional<base::Deadline> last_success;
  int sessions_open = 0;
  int sessions_in_use = 0;
  int waiters = 0;
};

// One thing the start-up probe found out about the module by attacking it with
// throw-away session keys.
struct Guarantee {
  enum class Observed { kEnforced, kNotEnforced, kNotTested };
  std::string name;     // "no-wrap"
  std::string meaning;  // "a non-extractable key cannot be wrapped"
  Observed observed = Observed::kNotTested;
  bool required = false;  // kekd refuses a module that does not enforce it
};

struct TokenInfo {
  std::string label, manufacturer, model, serial, firmware, library;
};

struct TokenOptions {
  std::string module_path;  // absolute
  std::string init_args;    // pReserved of C_Initialize (NSS needs it)
  // RFC 7512 URI with path attributes only (token, manufacturer, serial,
  // model); must match exactly one token.
  std::string uri;
  PinSource pin;
  // Directory (0700) for what must outlive the process: the hash of a refused
  // PIN.
  std::string state_dir;
  TokenProfile profile;
  base::Metrics* metrics = nullptr;  // may be null
  // A call that runs longer than this counts as hung: its session is given up
  // and, after hang_limit such calls, the token is kDegraded until they return.
  absl::Duration call_deadline = absl::Seconds(10);
  int hang_limit = 8;
  // After failures the library is re-initialised at most this often.
  absl::Duration reinitialize_min_interval = absl::Milliseconds(500);
  // One try of a PIN that was refused before, at Open (an operator's act; what
  // RetryLogin is later).
  bool retry_refused_pin = false;
  // Called, never with a lock held, when something an operator must know
  // happens: "pin-refused", "key-quarantined", ...
  std::function<void(const std::string& event, const std::string& detail)>
      on_event;
};

// Token models one PKCS#11 token: it finds it by URI, owns the login, the login
// session, the generation, the session pool and the admin lane, and runs every
// cryptographic operation of the program. It hides what can be mended: a lost
// session, a lost login, stale handles and a re-initialised library cost the
// caller one transparent retry inside the deadline.
//
// Thread-safe. Every method may block on the HSM until its deadline at the
// latest plus the time of the call in progress (PKCS#11 calls cannot be
// cancelled); never call from a thread that must not block. health() and info()
// never block.
//
// Status codes, for all methods unless said otherwise:
//   DEADLINE_EXCEEDED    the deadline passed while waiting for a session, a
//   lane or a retry RESOURCE_EXHAUSTED   too many callers wait for a session;
//   or the token is out of sessions or memory UNAVAILABLE          device,
//   library or login trouble; or the key object is not on the token
//   (ErrorClass::kHandle) FAILED_PRECONDITION  only an operator can mend it:
//   PIN, mechanism, template, write protection DATA_LOSS            the token's
//   answer is provably wrong; the key is quarantined (ErrorClass::kIntegrity)
class Token {
 public:
  // Loads and initialises the module and starts to look for the token. Fails
  // only for what a start must fail for: INVALID_ARGUMENT (URI, module path not
  // absolute), NOT_FOUND (no module file), FAILED_PRECONDITION (not a PKCS#11
  // module, the module is in use by someone else in this process, two tokens
  // match, the PIN source is unreadable, the security probe refuses the
  // module), PERMISSION_DENIED (the PIN was refused: now, or before and nothing
  // changed since). A token that is merely absent is not a failure: the Token
  // is returned and heals by itself.
  static absl::StatusOr<std::unique_ptr<Token>> Open(TokenOptions options);
  // Closes all sessions and finalises the library, unless a call hangs in it.
  ~Token();

  // ---- key objects; all of these take turns in the admin lane
  // -------------------------------------------------------------

  // Generates an AES-256 key object (non-extractable, sensitive, encrypt and
  // decrypt only) after making sure that no object has that CKA_ID, reads its
  // attributes back and judges them. If the token reports an error, looks
  // whether the object exists all the same: exactly one good object is the
  // result, anything else is destroyed and reported. ALREADY_EXISTS: an object
  // of that CKA_ID was there before. DATA_LOSS: the attributes are not what was
  // asked.
  absl::StatusOr<KeyAttributes> GenerateKey(const KeyIdentity& identity,
                                            base::Deadline deadline);

  // Makes the canary of a key just generated: encrypts 32 random bytes, opens
  // them through another session, compares.
  absl::StatusOr<Canary> MakeCanary(const KeyIdentity& identity,
                                    std::span<const uint8_t> aad,
                                    base::Deadline deadline);

  // Reads the attributes of the one object with this CKA_ID. NOT_FOUND: none.
  // DATA_LOSS: several.
  absl::StatusOr<KeyAttributes> ReadAttributes(const KeyIdentity& identity,
                                               base::Deadline deadline);

  // Destroys the object: proves by the canary that it is the right one,
  // destroys it, and looks for it again. OK when a find answers none, also when
  // there was none before. Any Key of this identity is unusable afterwards.
  absl::Status DestroyKey(const KeyIdentity& identity, const Canary& canary,
                          base::Deadline deadline);
  // The same for a key that never got a canary (creation was interrupted):
  // destroys whatever single object has this id.
  absl::Status DestroyUnprovenKey(const KeyIdentity& identity,
                                  base::Deadline deadline);

  // Every secret key object on the token.
  absl::StatusOr<std::vector<ObjectInfo>> ListKeys(base::Deadline deadline);

  // ---- use
  // ----------------------------------------------------------------------------------------------------------------

  // No HSM work; the key is resolved when first used. Two Keys of one identity
  // are independent.
  std::shared_ptr<Key> AddKey(KeyIdentity identity, Canary canary);

  // Opens the canary through the very handle that Encrypt uses in this
  // generation. If that fails because the handle is another key's, the key is
  // quarantined and DATA_LOSS returned: no ciphertext made through this handle
  // since the last successful Prove may leave. Resolves the key first if need
  // be.
  absl::Status Prove(const std::shared_ptr<Key>& key, base::Deadline deadline);

  // AES-256-GCM, 128-bit tag, single part. The IV is made as the profile says;
  // a retry uses a new one.
  absl::StatusOr<Sealed> Encrypt(const std::shared_ptr<Key>& key,
                                 std::span<const uint8_t> aad,
                                 std::span<const uint8_t> plaintext,
                                 const EncryptOptions& options,
                                 base::Deadline deadline);

  // INVALID_ARGUMENT with one fixed text when tag, AAD or ciphertext do not fit
  // (ErrorClass::kCallerData).
  absl::StatusOr<base::SecretBytes> Decrypt(const std::shared_ptr<Key>& key,
                                            std::span<const uint8_t> aad,
                                            const Sealed& sealed,
                                            base::Deadline deadline);

  // size bytes: host random XOR the token's random.
  absl::StatusOr<base::SecretBytes> GenerateRandom(size_t size,
                                                   base::Deadline deadline);

  // True once a proof of this key has failed; only ClearQuarantine, an
  // operator's act, makes it usable again.
  bool IsQuarantined(const std::shared_ptr<Key>& key) const;
  // The key is resolved and proven anew before it is used again.
  void ClearQuarantine(const std::shared_ptr<Key>& key);

  // ---- operation
  // ----------------------------------------------------------------------------------------------------------

  // Tries the PIN once more although it was refused before (kekctl token login
  // --retry). PERMISSION_DENIED if refused again.
  absl::Status RetryLogin(base::Deadline deadline);
  // Drops all sessions and logs in anew (kekctl token relogin): re-reads the
  // PIN source, begins a new generation.
  absl::Status Relogin(base::Deadline deadline);
  // One cheap piece of real work for when no traffic has proven the token
  // lately: random bytes, and recovery if need be.
  absl::Status Probe(base::Deadline deadline);

  TokenHealth health() const;
  // What C_GetTokenInfo said at the last login; empty strings before the first.
  TokenInfo info() const;
  const TokenProfile& profile() const;
  // What the start-up probe found; empty before the token was first reached.
  std::vector<Guarantee> guarantees() const;

 private:
  class Engine;
  explicit Token(std::shared_ptr<Engine> engine);
  // Shared with the calls in progress: one that hangs may outlive the Token.
  std::shared_ptr<Engine> engine_;
};

}  // namespace kek::pkcs11
