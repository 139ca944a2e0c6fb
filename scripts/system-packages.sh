#!/usr/bin/env bash
# Installs the Debian packages that building the guest and the Python package and running VMs needs, and those that are named as
# arguments. With nothing missing it does nothing and needs no root.
set -euo pipefail

readonly NAMED=("$@")

readonly MIN_QEMU_MAJOR=10

say() { echo "system packages: $*" >&2; }

die() {
    say "$*"
    exit 1
}

is_installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Major version of the QEMU on PATH, 0 if there is none. It need not be Debian's.
qemu_major() {
    local version
    version=$(qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\).*/\1/p') || true
    echo "${version:-0}"
}

# What is missing, a package a line.
missing_packages() {
    local package
    # The kernel's build, QEMU's with the libraries that go into it, the root file system's, and the archive's keys for all.
    for package in bc bison build-essential cpio flex kmod libelf-dev libssl-dev patch xz-utils \
        libfdt-dev libglib2.0-dev libseccomp-dev ninja-build pkgconf zlib1g-dev \
        debian-archive-keyring iproute2 mmdebstrap uidmap "${NAMED[@]}"; do
        is_installed "$package" || echo "$package"
    done
    # Clients of the registries that the image's other programs come from, from wherever they were installed.
    python3 -m pip --version >/dev/null 2>&1 || echo python3-pip
    # Debian's Python can make no environments by itself.
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    command -v npm >/dev/null || echo npm
    # A distribution's QEMU, with which VMs run too. The image has one of its own.
    [ "$(qemu_major)" -ge "$MIN_QEMU_MAJOR" ] || echo qemu-system-x86
}

# The mirror from which the machine's own apt takes this release.
mirror_of() {
    apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' | awk -v release="$1" '$2 == release { print $1; exit }'
}

# Debian 12 has QEMU 7.2; its backports have the one that is needed.
add_backports() {
    local suite=$1-backports mirror
    [ -z "$(mirror_of "$suite")" ] || return 0
    mirror=$(mirror_of "$1")
    [ -n "$mirror" ] || die "apt has no source for $1, so none for $suite can be added"
    say "adding $suite to apt's sources"
    cat >/etc/apt/sources.list.d/exec-sandbox-backports.sources <<EOF
Types: deb
URIs: $mirror
Suites: $suite
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
}

install_packages() {
    local options=(--yes --quiet --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@"
}

command -v dpkg-query >/dev/null || die "this is no Debian system: install QEMU $MIN_QEMU_MAJOR or newer and what this script lists by hand"
mapfile -t missing < <(missing_packages)
[ "${#missing[@]}" -gt 0 ] || exit 0
say "missing: ${missing[*]}"
[ "$(id --user)" -eq 0 ] || die "run this to install them: sudo scripts/system-packages.sh${NAMED[*]:+ ${NAMED[*]}}"

# shellcheck source=/dev/null
. /etc/os-release
target=()
if [ "${ID:-}" = debian ] && [ "${VERSION_ID:-0}" -le 12 ] && [[ " ${missing[*]} " == *" qemu-system-x86 "* ]]; then
    add_backports "$VERSION_CODENAME"
    target=(--target-release "$VERSION_CODENAME-backports")
fi
apt-get update --quiet
others=()
for package in "${missing[@]}"; do
    if [ "$package" = qemu-system-x86 ]; then
        install_packages "${target[@]}" qemu-system-x86
    else
        others+=("$package")
    fi
done
[ "${#others[@]}" -eq 0 ] || install_packages "${others[@]}"
mapfile -t missing < <(missing_packages)
[ "${#missing[@]}" -eq 0 ] || die "still missing after the installation: ${missing[*]}"
