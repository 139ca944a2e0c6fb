//! Which QEMU runs VMs: the image's own, which can be nothing but their machine, and just as well one that a distribution has built.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use exec_sandbox::{Exit, Language, Origin, SchedulerConfig};
use vmtests::{World, run, start, stderr, stdout};

/// The devices that the image's QEMU can make: a guest's four, the ports of the one that has some, and what the board has of a PC.
const DEVICES: [&str; 8] = [
    "isa-serial",
    "mc146818rtc",
    "virtconsole",
    "virtio-blk-device",
    "virtio-net-device",
    "virtio-rng-device",
    "virtio-serial-device",
    "virtserialport",
];

/// What a program prints.
fn said(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

/// The QEMU of a scheduler to which none is named.
async fn own_qemu() -> PathBuf {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let qemu = scheduler.facts().qemu.clone();
    scheduler.close().await.expect("nothing is left");
    assert!(qemu.ends_with("bin/qemu"), "{} is not the image's: is EXEC_SANDBOX_QEMU set?", qemu.display());
    qemu
}

/// The QEMU that is installed on this machine.
fn installed_qemu() -> PathBuf {
    let dirs = env::var_os("PATH").expect("it is set");
    let found = env::split_paths(&dirs).map(|dir| dir.join("qemu-system-x86_64")).find(|path| path.is_file());
    found.expect("no QEMU is installed: sudo scripts/system-packages.sh")
}

#[tokio::test]
async fn the_images_qemu_has_one_board_and_the_devices_of_a_guest() {
    let qemu = own_qemu().await;
    let machines = said(&qemu, &["-machine", "help"]);
    let machines: Vec<&str> = machines.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(machines, ["microvm", "none"]);
    let devices = said(&qemu, &["-device", "help"]);
    let named = devices.lines().filter_map(|line| line.strip_prefix("name \"")?.split('"').next());
    let mut devices: Vec<&str> = named.filter(|name| !name.ends_with("-cpu")).collect();
    devices.sort_unstable();
    assert_eq!(devices, DEVICES);
    let displays = said(&qemu, &["-display", "help"]);
    assert_eq!(displays.lines().nth(1), Some("none"), "{displays}");
}

#[tokio::test]
async fn the_images_qemu_needs_no_library_and_no_loader() {
    let qemu = own_qemu().await;
    let qemu = qemu.to_str().expect("it is text");
    let headers = said(Path::new("readelf"), &["--wide", "--dynamic", "--program-headers", qemu]);
    assert!(headers.contains("GNU_RELRO") && headers.contains("Flags: NOW PIE"), "{headers}");
    assert!(!headers.contains("INTERP") && !headers.contains("NEEDED"), "{headers}");
}

#[tokio::test]
async fn the_images_qemu_refuses_translations_that_are_none_or_of_another() {
    let qemu = own_qemu().await;
    let dir = tempfile::tempdir().expect("a directory");
    // Nothing, and a header that is all zeros before a table that is none.
    for (length, why) in [(0, "no header"), (8192, "another program or processor")] {
        let path = dir.path().join(length.to_string());
        fs::write(&path, vec![0; length]).expect("it is ours");
        let arguments =
            "-preconfig -nodefaults -display none -machine microvm,acpi=off -accel tcg,tb-size=256 -qmp stdio";
        let mut asked = Command::new(&qemu)
            .args(arguments.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let load = serde_json::json!({ "execute": "x-translations-load", "arguments": { "filename": path } });
        let lines = format!("{{\"execute\": \"qmp_capabilities\"}}\n{load}\n{{\"execute\": \"quit\"}}\n");
        asked.stdin.take().expect("it has one").write_all(lines.as_bytes()).expect("it reads");
        let output = asked.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(why) && output.status.success(), "{said}");
    }
}

#[tokio::test]
async fn a_distributions_qemu_boots_and_restores_guests_too() {
    let world = World::new();
    let code = "echo $((6 * 7))";
    for snapshots in [false, true] {
        let config = SchedulerConfig { qemu: Some(installed_qemu()), snapshots, ..world.config() };
        let scheduler = start(config).await;
        assert_eq!(scheduler.facts().qemu, installed_qemu());
        // The first run of a kind that nobody has saved boots, and saves it.
        for last in [false, true] {
            let outcome = run(&world, &scheduler, Language::Raw, code).await;
            let said = (stdout(&outcome), stderr(&outcome));
            assert_eq!((outcome.exit, said), (Exit::Code(0), ("42\n".into(), String::new())));
            let expected = if snapshots { Origin::Snapshot } else { Origin::Cold };
            assert!(!last || outcome.timing.origin == expected, "{:?}", outcome.timing);
        }
        scheduler.close().await.expect("nothing is left");
    }
}
