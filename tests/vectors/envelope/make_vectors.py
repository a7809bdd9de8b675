#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the examples of docs/envelope-format.md: envelope_v1.rsp and the seed
corpus of the envelope fuzz target.

Independent of kekd's code: it follows the specification with hashlib and the
AES-GCM of the Python package "cryptography". Keys and IVs are fixed, so that
running it again gives the same bytes. Usage: make_vectors.py, in any directory.
"""

import hashlib
import pathlib
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HERE = pathlib.Path(__file__).resolve().parent
CORPUS = HERE.parent.parent / "fuzz" / "corpus" / "envelope"

CONTEXTS = {
    "KUBERNETES_V1BETA1": 1,
    "KUBERNETES_V2": 2,
    "CLOUD_KMS": 3,
    "KEK_V1": 4,
}


def counting(start, size):
    return bytes((start + i) % 256 for i in range(size))


def seal(key, iv, aad, payload):
    if len(iv) == 12:
        return AESGCM(key).encrypt(iv, payload, aad)
    encryptor = Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()
    encryptor.authenticate_additional_data(aad)
    ciphertext = encryptor.update(payload) + encryptor.finalize()
    return ciphertext + encryptor.tag


def vector(name, context, version, iv_size, plaintext, caller_aad, salt):
    key = hashlib.sha256(b"kek envelope vector key %d" % salt).digest()
    uuid = counting(0x10 * (salt + 1), 16)
    iv = counting(0xA0 + salt, iv_size)
    header = (
        b"kek\x01"
        + bytes([1, CONTEXTS[context], 0])
        + uuid
        + struct.pack(">I", version)
        + bytes([iv_size])
    )
    aad = (
        struct.pack(">Q", len(header))
        + header
        + struct.pack(">Q", len(caller_aad))
        + caller_aad
    )
    payload = hashlib.sha256(plaintext).digest()[:8] + plaintext
    ciphertext = seal(key, iv, aad, payload)
    return {
        "Name": name,
        "Key": key.hex(),
        "Context": str(CONTEXTS[context]),
        "Uuid": uuid.hex(),
        "Version": str(version),
        "IV": iv.hex(),
        "PT": plaintext.hex(),
        "CallerAAD": caller_aad.hex(),
        "Payload": payload.hex(),
        "AAD": aad.hex(),
        "CT": ciphertext.hex(),
        "Envelope": (header + iv + ciphertext).hex(),
    }


VECTORS = [
    vector("a DEK of 32 bytes, Kubernetes v2", "KUBERNETES_V2", 1, 12,
           counting(0, 32), b"", 0),
    vector("a DEK of 32 bytes, Kubernetes v1beta1", "KUBERNETES_V1BETA1", 2, 12,
           counting(32, 32), b"", 1),
    vector("Cloud KMS, with caller's AAD", "CLOUD_KMS", 3, 12,
           b"attack at dawn", b"tenant=blue", 2),
    vector("empty plaintext", "CLOUD_KMS", 1, 12, b"", b"", 3),
    vector("IV of 16 bytes", "KEK_V1", 4294967295, 16,
           counting(0, 32), b"\x00", 4),
    vector("caller's AAD that looks like a header", "KEK_V1", 258, 12,
           counting(200, 17), b"kek\x01\x01\x03\x00" + counting(0, 21), 5),
]


def main():
    lines = ["# SPDX-License-Identifier: Apache-2.0",
             "# Examples of docs/envelope-format.md, made by make_vectors.py.", ""]
    for i, fields in enumerate(VECTORS):
        lines += [f"{k} = {v}".rstrip() for k, v in fields.items()] + [""]
        CORPUS.mkdir(parents=True, exist_ok=True)
        (CORPUS / f"vector{i}").write_bytes(bytes.fromhex(fields["Envelope"]))
    (HERE / "envelope_v1.rsp").write_text("\n".join(lines), encoding="ascii")


if __name__ == "__main__":
    main()
