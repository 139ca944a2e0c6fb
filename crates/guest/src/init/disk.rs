//! Disks: each is told by its virtio serial, never by its place in an order.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::InitError;

/// The serial that the host gives to the disk with the root image.
const ROOT_SERIAL: &str = "base";
/// The serial that the host gives to the disk with packages.
const LAYER_SERIAL: &str = "layer";

/// The drivers are built in, so a disk is there before PID 1 is; only its node can lag behind.
const WAIT_STEP: Duration = Duration::from_millis(2);
/// Together two seconds: far beyond any lag, and short enough that the host hears of it while it still waits.
const WAIT_STEPS: u32 = 1000;

/// The node of the disk with the root image.
pub(super) fn find_root() -> Result<PathBuf, InitError> {
    find(ROOT_SERIAL)
}

/// The node of the disk with packages, in a machine that is said to have one.
pub(super) fn find_layer() -> Result<PathBuf, InitError> {
    find(LAYER_SERIAL)
}

fn find(wanted: &'static str) -> Result<PathBuf, InitError> {
    for _ in 0..WAIT_STEPS {
        if let Some(node) = names().iter().find(|name| serial(name).as_deref() == Some(wanted)).map(|name| node(name))
            && node.exists()
        {
            return Ok(node);
        }
        thread::sleep(WAIT_STEP);
    }
    Err(InitError::NoDisk { serial: wanted, disks: describe() })
}

/// Removes the disks' nodes: nothing opens a disk after the mounts, and what root could write, a fault could.
pub(super) fn unlink_nodes() {
    for name in names() {
        let _ = fs::remove_file(node(&name));
    }
}

fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn serial(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/sys/block").join(name).join("serial")).ok().map(|serial| serial.trim().to_owned())
}

fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

fn describe() -> String {
    let disks: Vec<String> = names().iter().map(|name| format!("{name} with serial {:?}", serial(name))).collect();
    if disks.is_empty() { "none".to_owned() } else { disks.join(", ") }
}
