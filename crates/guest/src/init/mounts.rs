//! The mounts, in the order in which they must happen.
//!
//! The root image is mounted beside the initramfs and everything else on top of it; then it is moved over the initramfs, which no
//! `pivot_root` can leave. `/` stays read-only.
//!
//! A layer of packages was made in a guest where strangers' programs ran, so what the kernel reads in it may be anybody's bytes. It is mounted
//! without devices and raised rights. The agent reads nothing in it, starts nothing from it and looks for no name in it: what is wrong with
//! it shows in the program that reads it.

use std::{ffi::CString, path::Path};

use exec_sandbox_wire::boot::FileLimit;
use rustix::{fs::Mode, io::Errno, mount::MountFlags};

use super::{InitError, sizes};

/// Where the root image is put together.
const ROOT: &str = "/newroot";

/// Where packages are found; programs know it as `/opt/packages`.
const LAYER: &str = "/newroot/opt/packages";

const NO_EXTRAS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
/// What the kernel shows as files: nothing in it is run, or is a device.
pub(super) const KERNEL_TREE: MountFlags = NO_EXTRAS.union(MountFlags::NOEXEC);

/// What the search for the disks needs: the kernel's trees, which have the devices and the host's words.
pub(super) fn early() -> Result<(), InitError> {
    for path in ["/dev", "/sys", "/proc", ROOT] {
        make_dir(path)?;
    }
    mount("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=0755")?;
    mount("sysfs", "/sys", KERNEL_TREE, "")?;
    // Whoever is not the user is not seen by the user: neither PID 1 nor a thread of the kernel's.
    mount("proc", "/proc", KERNEL_TREE, "hidepid=invisible")
}

/// The root image, read-only.
pub(super) fn root(device: &Path) -> Result<(), InitError> {
    let flags = MountFlags::RDONLY | NO_EXTRAS;
    rustix::mount::mount(device, ROOT, "erofs", flags, None)
        .map_err(|source| InitError::Root { device: device.to_path_buf(), source })
}

/// The packages, read-only. They can be run: there are programs and native extensions among them.
pub(super) fn layer(device: &Path) -> Result<(), InitError> {
    if !Path::new(LAYER).is_dir() {
        return Err(InitError::NoLayerPlace { path: "/opt/packages" });
    }
    let flags = MountFlags::RDONLY | NO_EXTRAS;
    rustix::mount::mount(device, LAYER, "erofs", flags, None)
        .map_err(|source| InitError::Layer { device: device.to_path_buf(), source })
}

/// What lies on the root image: the kernel's trees, and the memory file systems of a machine with `total` bytes, each with room for so many
/// files.
pub(super) fn over_root(total: u64, files: FileLimit) -> Result<(), InitError> {
    shift("/dev", "/newroot/dev")?;
    shift("/sys", "/newroot/sys")?;
    shift("/proc", "/newroot/proc")?;
    mount("cgroup2", "/newroot/sys/fs/cgroup", KERNEL_TREE, "")?;
    make_dir("/newroot/dev/pts")?;
    make_dir("/newroot/dev/shm")?;
    let devpts = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devpts", "/newroot/dev/pts", devpts, "gid=5,mode=0620,ptmxmode=0666")?;
    let room = |bytes| room(bytes, files.get());
    let shm = format!("{},mode=1777", room(sizes::shm_bytes(total)));
    mount("tmpfs", "/newroot/dev/shm", KERNEL_TREE, &shm)?;
    mount("tmpfs", "/newroot/run", NO_EXTRAS, &format!("size={},mode=0755", sizes::RUN_BYTES))?;
    mount("tmpfs", "/newroot/tmp", NO_EXTRAS, &format!("{},mode=1777", room(sizes::tmp_bytes(total))))?;
    home(&room(sizes::home_bytes(total)))
}

/// The program's home. An image without the directory gets it in a memory file system of its own.
fn home(room: &str) -> Result<(), InitError> {
    const HOME: &str = "/newroot/home/user";
    if !Path::new(HOME).is_dir() {
        mount("tmpfs", "/newroot/home", NO_EXTRAS, "size=64k,mode=0755")?;
        make_dir(HOME)?;
    }
    mount("tmpfs", HOME, NO_EXTRAS, &format!("{room},mode=0755,uid=1000,gid=1000"))
}

/// The options by which a memory file system has room for `bytes` and `files`. The quota is what the one user may take of it; it has to
/// be set with the first mount.
fn room(bytes: u64, files: u32) -> String {
    let quota = format!("usrquota_block_hardlimit={bytes},usrquota_inode_hardlimit={files}");
    format!("size={bytes},nr_inodes={files},{quota}")
}

/// Makes the root image `/`, for this process and all it starts.
pub(super) fn move_onto_root() -> Result<(), InitError> {
    let step = |step| move |source| InitError::Move { step, source };
    rustix::process::chdir(ROOT).map_err(step("enter it"))?;
    rustix::mount::mount_move(".", "/").map_err(step("move its mount"))?;
    rustix::process::chroot(".").map_err(step("change the root directory"))?;
    rustix::process::chdir("/").map_err(step("enter the new root"))
}

fn mount(what: &'static str, target: &'static str, flags: MountFlags, options: &str) -> Result<(), InitError> {
    let options = CString::new(options).map_err(|_| InitError::Mount { what, target, source: Errno::INVAL })?;
    rustix::mount::mount(what, target, what, flags, Some(options.as_c_str())).map_err(|source| InitError::Mount {
        what,
        target,
        source,
    })
}

fn shift(from: &'static str, to: &'static str) -> Result<(), InitError> {
    rustix::mount::mount_move(from, to).map_err(|source| InitError::Mount { what: from, target: to, source })
}

fn make_dir(path: &'static str) -> Result<(), InitError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(source) => Err(InitError::Make { path, source }),
    }
}
