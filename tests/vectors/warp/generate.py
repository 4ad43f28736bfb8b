#!/usr/bin/env python3
"""Writes warp.json from docs/spec/warp.md with pyca/cryptography (OpenSSL), which shares no code with weave."""

import json
import pathlib

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

AES, CHACHA = 1, 2
NAMES = [bytes.fromhex("7a0000000001"), bytes.fromhex("7a0000000002")]  # dialler, acceptor
UID = bytes.fromhex("0000000000000077")
PRIVATE = [bytes(range(32)), bytes(range(100, 132))]
INDICES = [bytes.fromhex("01020304"), bytes.fromhex("a1a2a3a4")]


def extract(salt, data):
    mac = HMAC(salt, SHA256())
    mac.update(data)
    return mac.finalize()


def expand(secret, info):
    return HKDFExpand(algorithm=SHA256(), length=32, info=info).derive(secret)


def record(frame):
    return NAMES[0] + NAMES[1] + len(frame).to_bytes(2, "big") + frame


def case(name, preferred, mesh_key):
    keys = [X25519PrivateKey.from_private_bytes(private) for private in PRIVATE]
    public = [key.public_key().public_bytes_raw() for key in keys]
    messages = [bytes([1, preferred[i]]) + INDICES[i] + public[i] for i in (0, 1)]
    shared = keys[0].exchange(X25519PublicKey.from_public_bytes(public[1]))
    cipher = AES if preferred == [AES, AES] else CHACHA
    secrets = [
        expand(
            extract(b"weave warp 1", shared + mesh_key),
            b"connection" + bytes([cipher]) + UID + b"".join(NAMES) + b"".join(public) + b"".join(INDICES),
        )
    ]
    secrets.append(expand(secrets[0], b"next"))
    datagrams = []
    # The third datagram is the second of its lane, which ends epoch 0 if an epoch has one datagram.
    for sender, epoch, df, lane, number in [
        (0, 0, True, 0, 0),
        (1, 0, True, 0, 0),
        (0, 1, True, 0, 1),
        (1, 1, False, 0, 0),
        (0, 1, True, 5, 0),
        (1, 1, False, 7, 0),
        (0, 1, True, 8, 0),  # there is no such lane
    ]:
        frame = bytes((i * 7 + epoch + sender) % 256 for i in range(60 + 41 * len(datagrams)))
        word = ((1 << 63 if df else 0) | number).to_bytes(8, "big")
        header = bytes([0xF1, epoch, 0, lane]) + INDICES[1 - sender] + word
        key = expand(secrets[epoch], b"key" + bytes([1 - sender]))
        aead = AESGCM(key) if cipher == AES else ChaCha20Poly1305(key)
        sealed = aead.encrypt(bytes([0, lane, 0, 0]) + word, record(frame), header)
        datagrams.append(
            {"sender": sender, "df": df, "lane": lane, "frame": frame.hex(), "datagram": (header + sealed).hex()}
        )
    return {
        "name": name,
        "private_keys": [private.hex() for private in PRIVATE],
        "indices": [int.from_bytes(index, "big") for index in INDICES],
        "preferred": preferred,
        "mesh_key": mesh_key.hex(),
        "key_messages": [message.hex() for message in messages],
        "datagrams": datagrams,
    }


CASES = [
    case("AES-256-GCM, without a password", [AES, AES], b""),
    case("AES-256-GCM, with a password", [AES, AES], bytes(range(200, 232))),
    case("ChaCha20-Poly1305, because one end prefers it", [AES, CHACHA], bytes(range(200, 232))),
    case("ChaCha20-Poly1305, without a password", [CHACHA, CHACHA], b""),
]
pathlib.Path(__file__).with_name("warp.json").write_text(json.dumps(CASES, indent=1) + "\n")
