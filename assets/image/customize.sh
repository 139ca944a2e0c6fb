#!/bin/sh
# Turns an unpacked Debian into the guest's root: one user, no traces of the build, nothing that depends on when or where it ran.
# mmdebstrap calls it with the root directory; `cargo xtask assets` has put the programs of /usr/local in place before.
set -eu
umask 022
root=$1

# The user that runs code. Written by hand because useradd would also hand out subordinate ids and a mail spool.
echo 'user:x:1000:1000::/home/user:/bin/bash' >>"$root/etc/passwd"
echo 'user:x:1000:' >>"$root/etc/group"
echo 'user:!:20000:0:99999:7:::' >>"$root/etc/shadow"
echo 'user:!::' >>"$root/etc/gshadow"
chmod 640 "$root/etc/shadow" "$root/etc/gshadow"
install -d -m 755 -o 1000 -g 1000 "$root/home/user"

# mmdebstrap brings the build machine's resolver and host name, with their modes.
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
echo sandbox >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost sandbox\n::1\tlocalhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"

ln -sf /usr/local/bin/bun "$root/usr/local/bin/bunx"
ln -sf /usr/bin/python3 "$root/usr/local/bin/python"

# Where packages are mounted, and the ways to them: the first directory in which Python looks after its own library, and the last in which
# Bun looks from anywhere. Without packages both lead nowhere, which neither minds.
mkdir -p "$root/opt/packages"
python=$(chroot "$root" python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
rmdir "$root/usr/local/lib/$python/dist-packages"
ln -s /opt/packages/python "$root/usr/local/lib/$python/dist-packages"
ln -s /opt/packages/node_modules "$root/node_modules"

# Bytecode is compiled here, for a read-only root cannot cache it, and is believed without a look at its source's time stamp, for the
# file system has one time for every file.
find "$root/usr/lib" -name __pycache__ -prune -exec rm -rf {} +
chroot "$root" sh -c 'exec python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /usr/lib/python3*'

# Nothing gains privileges in the guest.
find "$root" -xdev -type f -perm /6000 -exec chmod u-s,g-s {} +

# What only installing needs, logs of it, and where the packages lay. apt's state and /tmp are mmdebstrap's to clear: it still works with
# them, and without its configuration there apt would turn to the build machine's.
rm -rf "$root"/etc/apt/sources.list "$root"/etc/*- "$root"/var/cache/debconf "$root"/var/cache/ldconfig "$root"/var/lib/dpkg/*-old
find "$root/var/log" -type f -delete

# Mount points.
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp"
