#!/usr/bin/env bash
# The engine on 64-bit ARM: built by Debian's cross compiler and run by an emulator. The grid of its kernels, and whole models
# beside the interpreter, on every row that the emulated processor has. Says so and skips where this cannot be.
#
# Nothing is timed here: an emulator says nothing of speed.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "SKIP ARM: $1"; exit 0; }

target=aarch64-unknown-linux-gnu
# Debian's compiler, because the standard library of a toolchain that rustup made for ARM may be out of reach. `rustc-web` is as
# new as browsers need it. It stands behind rustup's in PATH, so no other step sees it.
packages="rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"

# shellcheck disable=SC2086
if ! dpkg-query --show $packages >/dev/null 2>&1; then
    command -v apt-get >/dev/null || skip "there is no apt-get to install $packages"
    { dpkg --add-architecture arm64 && apt-get update -qq \
        && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; } >/dev/null \
        || skip "Debian's packages could not be installed: $packages"
fi
have=$(/usr/bin/rustc --version | cut -d ' ' -f 2)
want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
[ "$(printf '%s\n' "$want" "$have" | sort -V | head -1)" = "$want" ] || skip "Debian's rustc is $have, and we need $want"

export RUSTC=/usr/bin/rustc CARGO_TARGET_DIR=target/arm
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Without `-L`: the loader and the C library are both those of libc6:arm64. A loader from the cross compiler's folder beside that
# library may be of another version, and then the first thread never starts.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu ${CPU:-max}"

# Slow under emulation, and left out: `cache`, where plans are measured again and again, and the longest test of `bands`, a minute
# and a half. So are the tests that need files or another runtime.
cargo test --release --target $target -p lacuna-kernels -p lacuna-engine --lib \
    --test bands --test binding --test choices --test disassembly --test errors --test flows --test forms --test lowering \
    --test oracle --test order --test steps --test transformer \
    -- --skip chains_in_bands_equal_layers_one_by_one
