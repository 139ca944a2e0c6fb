//! A [`Machine`] as arguments of QEMU.
//!
//! The order is fixed, because devices are numbered by it and a saved state is loaded by those numbers. Start-up of QEMU up to its
//! QMP greeting is the loading of the program (19 ms of Debian's and 4 ms of the image's where this was measured); no option here
//! changes that by more than noise, so each is judged by what it does for safety, memory or boot.
//!
//! Both architectures use virtio over MMIO, which needs no PCI in the guest. On x86-64 KVM and emulation share one device list, with
//! PIT, PIC and RTC: emulation needs them, and idle they cost KVM nothing.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use crate::{
    AGENT_PORT_NAME, LAYER_DISK_SERIAL, MEMORY_ID, ROOT_DISK_SERIAL,
    kernel::kernel_command_line,
    machine::{Accelerator, Arch, Boot, Console, LayerDisk, Machine, NetworkCard, RootDisk, Start},
};

/// Size of the buffer for translated code under emulation, where QEMU's default is 1 GiB per VM. It is reserved, not touched; a
/// buffer of 32 MiB overflows and slows programs down.
const TRANSLATION_BUFFER_MIB: u32 = 256;

/// Threads that may read the disk for one VM, where QEMU's default is 64. With 24 guest processes reading past the page cache, QEMU
/// had up to 20 threads without this limit and 8 with it, for reads that took a tenth longer; a host of many VMs has the threads to
/// spare less than that.
const DISK_THREADS: u32 = 4;

/// What a guest may read from its disks for long, and in a burst of [`DISK_BURST_SECONDS`]: a disk is one file for all guests of an image,
/// and none shall have the host's reads, or the threads that make them, to itself. Both disks draw on it together. A boot reads some tens of MiB in some thousand requests.
const DISK_BYTES_PER_SECOND: u64 = 256 << 20;
const DISK_READS_PER_SECOND: u64 = 20_000;
const DISK_BURST_BYTES_PER_SECOND: u64 = 1 << 30;
const DISK_BURST_READS_PER_SECOND: u64 = 80_000;
const DISK_BURST_SECONDS: u64 = 2;

/// QEMU's number for the descriptor of the disk with packages.
const LAYER_FD_SET: u32 = 1;

/// The arguments that make QEMU be this machine, without the program's name.
#[must_use]
pub fn argv(machine: &Machine) -> Vec<OsString> {
    let mut args = Args::default();
    // Nothing that was not asked for: no default devices, no configuration files, no window, and a reset is the end.
    args.flag("-nodefaults").flag("-no-user-config").pair("-display", "none").flag("-no-reboot");
    args.pair("-name", option("guest=", &machine.name));
    if let Some(fd) = machine.firmware_fd {
        args.pair("-L", format!("/proc/self/fd/{fd}"));
        // A QEMU whose firmware is inherited is executed by a descriptor too, and would be called by that one's number.
        args.pair("-name", format!("process={}", machine.arch.qemu_program()));
    }
    if machine.sandbox {
        args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }
    board(machine, &mut args);
    args.pair("-object", format!("main-loop,id=main-loop,thread-pool-max={DISK_THREADS}"));
    match &machine.start {
        Start::Boot(boot) => {
            args.pair("-kernel", &boot.kernel).pair("-initrd", &boot.initramfs);
            args.pair("-append", kernel_command_line(machine, &boot.kernel_args));
            if boot.waits {
                args.flag("-preconfig");
            }
        }
        // The guest's memory is named before the machine is made, and its state afterwards.
        Start::Blank => {
            args.flag("-preconfig").pair("-incoming", "defer");
        }
    }
    devices(machine, &mut args);
    args.0
}

/// What two guests must have in common for the state of one to be loaded into the other's QEMU: the arguments that make board, processor,
/// memory and devices, without names, and without the numbers of descriptors, which are the host's own business.
#[must_use]
pub fn shape(machine: &Machine) -> Vec<String> {
    let nothing = RootDisk { path: PathBuf::new() };
    let layer_disk = machine.layer_disk.map(|_| LayerDisk { fd: 0 });
    let network = machine.network.map(|card| NetworkCard { fd: 0, ..card });
    let plain = Machine {
        name: String::new(),
        start: Start::Blank,
        root_disk: nothing,
        layer_disk,
        agent_fd: 0,
        qmp_fd: 0,
        network,
        ..machine.clone()
    };
    let mut args = Args::default();
    board(&plain, &mut args);
    devices(&plain, &mut args);
    args.0.into_iter().map(|arg| arg.to_string_lossy().into_owned()).collect()
}

/// The board, its processor and its memory.
fn board(machine: &Machine, args: &mut Args) {
    // A core dump of QEMU leaves the guest's memory out, and no page of the guest is merged with another's, which timing could tell.
    let mut memory = "dump-guest-core=off,mem-merge=off".to_owned();
    if let Start::Boot(Boot { memory_fd: Some(fd), .. }) = machine.start {
        let size = format!("size={}M,share=on,mem-path=/proc/self/fd/{fd}", machine.memory_mib);
        args.pair("-object", format!("memory-backend-file,id={MEMORY_ID},{size}"));
        memory = format!("{memory},memory-backend={MEMORY_ID}");
    }
    let board = machine.arch.machine_type();
    args.pair(
        "-M",
        match (machine.arch, &machine.accelerator) {
            // With ACPI most boots under emulation hang in the calibration of timers.
            (Arch::X86_64, _) => format!("{board},acpi=off,{memory}"),
            (Arch::Aarch64, Accelerator::Kvm { .. }) => format!("{board},gic-version=host,{memory}"),
            (Arch::Aarch64, _) => format!("{board},gic-version=3,{memory}"),
        },
    );
    match &machine.accelerator {
        Accelerator::Kvm { cpu_model } => {
            args.pair("-accel", "kvm").pair("-cpu", without_nesting(machine.arch, cpu_model))
        }
        Accelerator::Hvf => args.pair("-accel", "hvf").pair("-cpu", "host"),
        Accelerator::Tcg { .. } => args
            // One thread: two processors on two threads make fork ten times slower.
            .pair("-accel", format!("tcg,thread=single,tb-size={TRANSLATION_BUFFER_MIB}"))
            .pair("-cpu", emulated_cpu(machine.arch)),
    };
    args.pair("-m", format!("{}M", machine.memory_mib)).pair("-smp", machine.vcpus.to_string());
}

/// A processor that cannot be a hypervisor's: no guest starts guests, and what KVM would do for it then is a host's most intricate code.
fn without_nesting(arch: Arch, cpu_model: &str) -> String {
    match arch {
        Arch::X86_64 => format!("{cpu_model},-vmx,-svm"),
        // There it is a board's property, which is off.
        Arch::Aarch64 => cpu_model.to_owned(),
    }
}

/// The processor that is emulated: everything that can be, but for what is slow to emulate, and a hypervisor's part.
fn emulated_cpu(arch: Arch) -> &'static str {
    match arch {
        // `rep movsb` is emulated byte by byte: a kernel that does not find it to be fast, in general or for short strings, copies by
        // words, 1.5 to 3 times faster.
        Arch::X86_64 => "max,-erms,-fsrm,-fsrs,-fzrm,-svm",
        // QEMU's own pointer-authentication function instead of the architected one, which is slow in software.
        Arch::Aarch64 => "max,pauth-impdef=on",
    }
}

/// The devices, in the order in which they are numbered.
fn devices(machine: &Machine, args: &mut Args) {
    args.pair(
        "-object",
        format!(
            "throttle-group,id=disk,x-bps-total={DISK_BYTES_PER_SECOND},x-iops-total={DISK_READS_PER_SECOND},\
             x-bps-total-max={DISK_BURST_BYTES_PER_SECOND},x-iops-total-max={DISK_BURST_READS_PER_SECOND},\
             x-bps-total-max-length={DISK_BURST_SECONDS},x-iops-total-max-length={DISK_BURST_SECONDS}"
        ),
    );
    disk("base", ROOT_DISK_SERIAL, &machine.root_disk.path, args);
    if let Some(layer) = &machine.layer_disk {
        args.pair("-add-fd", format!("fd={},set={LAYER_FD_SET}", layer.fd));
        disk("layer", LAYER_DISK_SERIAL, Path::new(&format!("/dev/fdset/{LAYER_FD_SET}")), args);
    }
    // The agent's port, and the one before it, which is for a console. With more of them a guest makes two queues for each, goes through
    // them all at every interrupt, and QEMU keeps a descriptor for each.
    args.pair("-device", "virtio-serial-device,max_ports=2");
    args.pair("-chardev", format!("socket,id=agent,fd={},server=on,wait=off", machine.agent_fd));
    args.pair("-device", format!("virtserialport,chardev=agent,name={AGENT_PORT_NAME}"));
    // From getrandom, so that QEMU needs no file. Without it the first program in the guest can wait seconds for entropy.
    args.pair("-object", "rng-builtin,id=entropy").pair("-device", "virtio-rng-device,rng=entropy");
    if let Some(card) = &machine.network {
        network_card(card, args);
    }
    args.pair("-chardev", format!("socket,id=qmp,fd={}", machine.qmp_fd));
    args.pair("-mon", "chardev=qmp,mode=control");
    if let Some(console) = &machine.console {
        match console {
            Console::Socket(fd) => args.pair("-chardev", format!("socket,id=console,fd={fd}")),
            Console::File(path) => args.pair("-chardev", option("file,id=console,path=", path)),
        };
        args.pair("-serial", "chardev:console");
    }
}

/// A disk, read-only at every level: it is one file for many guests, and what one of them could write, the others would read. `node` is its
/// name in QEMU.
fn disk(node: &str, serial: &str, path: &Path, args: &mut Args) {
    // No file locks: the file is immutable, and the file system it is on may have none.
    let whole = format!(
        "driver=throttle,node-name={node},read-only=on,throttle-group=disk,file.driver=raw,file.read-only=on,\
         file.file.driver=file,file.file.read-only=on,file.file.locking=off,file.file.filename="
    );
    args.pair("-blockdev", option(&whole, path));
    args.pair("-device", format!("virtio-blk-device,drive={node},serial={serial}"));
}

/// The network card.
///
/// Its wire carries plain Ethernet: each frame is one packet, and who sends it computes its checksums. What else a card can offer is
/// switched off rather than left to what QEMU finds on the wire, and with it the queue of commands by which a guest sets filters in its
/// card: there is one station at the other end, and each command is code of QEMU's that a guest could reach. Buffers stay mergeable:
/// else each of the 256 that the guest lends its card is as large as a packet can be, at the largest 17 MiB of the guest's memory.
fn network_card(card: &NetworkCard, args: &mut Args) {
    let NetworkCard { fd, mac: [a, b, c, d, e, f], mtu } = card;
    args.pair("-netdev", format!("stream,id=network,server=off,addr.type=fd,addr.str={fd}"));
    args.pair(
        "-device",
        format!(
            "virtio-net-device,netdev=network,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},host_mtu={mtu},\
             csum=off,guest_csum=off,gso=off,ctrl_vq=off,ctrl_rx=off,ctrl_vlan=off,ctrl_mac_addr=off,\
             ctrl_guest_offloads=off,guest_announce=off"
        ),
    );
}

/// Arguments as they are collected.
#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn pair(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.as_ref().into());
        self
    }
}

/// A value as part of a list of options, where a comma is written twice.
fn escape(value: impl AsRef<OsStr>) -> OsString {
    let mut escaped = Vec::new();
    for &byte in value.as_ref().as_bytes() {
        escaped.push(byte);
        if byte == b',' {
            escaped.push(byte);
        }
    }
    OsString::from_vec(escaped)
}

/// The start of an option list and a last value, which is escaped.
fn option(list: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut whole = OsString::from(list);
    whole.push(escape(value));
    whole
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn boot() -> Boot {
        Boot {
            kernel: "/image/kernel".into(),
            initramfs: "/image/agent.cpio".into(),
            kernel_args: vec!["agent.generation=1".into()],
            memory_fd: None,
            waits: false,
        }
    }

    fn machine(arch: Arch, accelerator: Accelerator) -> Machine {
        Machine {
            name: "vm-1".into(),
            arch,
            accelerator,
            memory_mib: 192,
            vcpus: 1,
            start: Start::Boot(boot()),
            root_disk: RootDisk { path: "/image/root.erofs".into() },
            layer_disk: None,
            agent_fd: 3,
            qmp_fd: 4,
            network: None,
            console: None,
            firmware_fd: None,
            sandbox: true,
        }
    }

    fn kvm() -> Accelerator {
        Accelerator::Kvm { cpu_model: "host,-arch-capabilities".into() }
    }

    fn tcg() -> Accelerator {
        Accelerator::Tcg { tsc_khz: NonZeroU32::new(2_300_000) }
    }

    /// One option a line, its value beside it.
    fn page(machine: &Machine) -> String {
        let mut page = String::new();
        for arg in argv(machine) {
            let arg = arg.into_string().expect("the arguments of these machines are text");
            let is_option = arg.starts_with('-');
            page.push_str(if is_option && !page.is_empty() { "\n" } else { " " });
            page.push_str(&arg);
        }
        page.trim_start().to_owned()
    }

    #[test]
    fn kvm_on_x86_64() {
        insta::assert_snapshot!(page(&machine(Arch::X86_64, kvm())));
    }

    #[test]
    fn hvf_on_x86_64() {
        insta::assert_snapshot!(page(&Machine { sandbox: false, ..machine(Arch::X86_64, Accelerator::Hvf) }));
    }

    #[test]
    fn tcg_on_x86_64() {
        insta::assert_snapshot!(page(&machine(Arch::X86_64, tcg())));
    }

    #[test]
    fn a_machine_that_boots_later_waits_before_it_is_made_and_is_otherwise_the_same() {
        let at_once = machine(Arch::X86_64, tcg());
        let waiting = Machine { start: Start::Boot(Boot { waits: true, ..boot() }), ..at_once.clone() };
        assert_eq!(page(&waiting).replace("\n-preconfig", ""), page(&at_once));
        assert!(page(&waiting).contains("\n-preconfig\n"));
    }

    #[test]
    fn tcg_on_x86_64_with_a_console() {
        let console = Some(Console::Socket(5));
        insta::assert_snapshot!(page(&Machine { console, ..machine(Arch::X86_64, tcg()) }));
    }

    #[test]
    fn kvm_on_x86_64_with_a_console() {
        let console = Some(Console::File("/run/vm-1/console".into()));
        insta::assert_snapshot!(page(&Machine { console, ..machine(Arch::X86_64, kvm()) }));
    }

    #[test]
    fn firmware_that_is_inherited_is_looked_for_first_and_shapes_no_state() {
        let plain = machine(Arch::X86_64, tcg());
        let own = Machine { firmware_fd: Some(12), ..plain.clone() };
        let expected = "\n-name guest=vm-1\n-L /proc/self/fd/12\n-name process=qemu-system-x86_64\n";
        assert!(page(&own).contains(expected), "{}", page(&own));
        assert_eq!(shape(&own), shape(&plain));
    }

    #[test]
    fn kvm_on_aarch64() {
        insta::assert_snapshot!(page(&machine(Arch::Aarch64, Accelerator::Kvm { cpu_model: "host".into() })));
    }

    #[test]
    fn hvf_on_aarch64_with_a_console() {
        let console = Some(Console::Socket(5));
        let machine = Machine { console, sandbox: false, ..machine(Arch::Aarch64, Accelerator::Hvf) };
        insta::assert_snapshot!(page(&machine));
    }

    #[test]
    fn tcg_on_aarch64() {
        insta::assert_snapshot!(page(&machine(Arch::Aarch64, tcg())));
    }

    fn networked(machine: Machine) -> Machine {
        let network = Some(NetworkCard { fd: 6, mac: [0x52, 0x54, 0, 0x12, 0x34, 0xff], mtu: 65520 });
        Machine { network, ..machine }
    }

    #[test]
    fn tcg_on_x86_64_with_a_network_card() {
        insta::assert_snapshot!(page(&networked(machine(Arch::X86_64, tcg()))));
    }

    #[test]
    fn the_card_is_the_same_whatever_runs_the_guest() {
        let card = |machine: Machine| {
            let (alone, networked) = (argv(&machine), argv(&networked(machine.clone())));
            // What is there without it is there with it, in its order: nothing but the card and its wire comes in between.
            let start = alone.iter().zip(&networked).take_while(|(alone, networked)| alone == networked).count();
            let added = networked.len() - alone.len();
            assert_eq!(alone[start..], networked[start + added..]);
            networked[start..start + added].to_vec()
        };
        let emulated = card(machine(Arch::X86_64, tcg()));
        assert_eq!(emulated.len(), 4, "{emulated:?}");
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for accelerator in [kvm(), Accelerator::Hvf, tcg()] {
                assert_eq!(card(machine(arch, accelerator)), emulated);
            }
        }
    }

    #[test]
    fn kvm_on_aarch64_with_a_network_card() {
        let network = Some(NetworkCard { fd: 6, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 });
        let accelerator = Accelerator::Kvm { cpu_model: "host".into() };
        insta::assert_snapshot!(page(&Machine { network, ..machine(Arch::Aarch64, accelerator) }));
    }

    fn layered(machine: Machine) -> Machine {
        Machine { layer_disk: Some(LayerDisk { fd: 11 }), ..machine }
    }

    #[test]
    fn tcg_on_x86_64_with_a_layer() {
        insta::assert_snapshot!(page(&layered(machine(Arch::X86_64, tcg()))));
    }

    #[test]
    fn kvm_on_aarch64_with_a_layer_and_a_network_card() {
        let accelerator = Accelerator::Kvm { cpu_model: "host".into() };
        insta::assert_snapshot!(page(&layered(networked(machine(Arch::Aarch64, accelerator)))));
    }

    #[test]
    fn no_disk_can_be_written_by_any_machine() {
        let start = Start::Boot(Boot { memory_fd: Some(8), ..boot() });
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for accelerator in [kvm(), Accelerator::Hvf, tcg()] {
                let plain = machine(arch, accelerator);
                let machines = [
                    plain.clone(),
                    networked(plain.clone()),
                    Machine { start: start.clone(), ..plain.clone() },
                    Machine { start: Start::Blank, console: Some(Console::Socket(5)), ..plain },
                ];
                for machine in machines {
                    assert_eq!(read_only_disks(&machine), 1, "{machine:?}");
                    assert_eq!(read_only_disks(&layered(machine)), 2);
                }
            }
        }
    }

    /// How many disks a machine has, each of which is read-only at the three levels that QEMU puts it together of.
    fn read_only_disks(machine: &Machine) -> usize {
        let args = argv(machine);
        let mut nodes = 0;
        for pair in args.windows(2).filter(|pair| pair[0] == "-blockdev") {
            let options: Vec<_> = pair[1].to_str().expect("they are text").split(',').collect();
            for level in ["", "file.", "file.file."] {
                assert!(options.contains(&format!("{level}read-only=on").as_str()), "{options:?}");
            }
            assert!(!options.iter().any(|option| option.ends_with("read-only=off")), "{options:?}");
            nodes += 1;
        }
        let disks = args.iter().filter(|arg| arg.to_string_lossy().starts_with("virtio-blk-device,")).count();
        assert_eq!(nodes, disks);
        assert!(!args.iter().any(|arg| arg == "-drive"));
        disks
    }

    #[test]
    fn a_template_on_x86_64() {
        let start = Start::Boot(Boot { memory_fd: Some(8), ..boot() });
        insta::assert_snapshot!(page(&Machine { start, ..machine(Arch::X86_64, tcg()) }));
    }

    #[test]
    fn blank_on_x86_64() {
        insta::assert_snapshot!(page(&Machine { start: Start::Blank, ..networked(machine(Arch::X86_64, kvm())) }));
    }

    #[test]
    fn a_template_and_its_clones_have_one_shape_whatever_their_names() {
        let start = Start::Boot(Boot { memory_fd: Some(8), ..boot() });
        let templates = [Machine { start, ..machine(Arch::X86_64, tcg()) }, machine(Arch::Aarch64, kvm())];
        for template in templates.iter().cloned().chain(templates.iter().cloned().map(layered)) {
            let layer_disk = template.layer_disk.map(|_| LayerDisk { fd: 8 });
            let clone = Machine {
                name: "vm-2".into(),
                start: Start::Blank,
                root_disk: RootDisk { path: "/proc/self/fd/7".into() },
                layer_disk,
                agent_fd: 9,
                qmp_fd: 10,
                ..template.clone()
            };
            assert_eq!(shape(&template), shape(&clone));
            let others = [
                Machine { memory_mib: 256, ..clone.clone() },
                Machine { vcpus: 2, ..clone.clone() },
                Machine { console: Some(Console::Socket(5)), ..clone.clone() },
                networked(clone.clone()),
                if layer_disk.is_none() { layered(clone) } else { Machine { layer_disk: None, ..clone } },
            ];
            for other in others {
                assert_ne!(shape(&template), shape(&other));
            }
        }
        assert_ne!(shape(&machine(Arch::X86_64, tcg())), shape(&machine(Arch::X86_64, kvm())));
    }

    #[test]
    fn without_a_measured_counter_the_guest_is_told_no_frequency() {
        let line = kernel_command_line(&machine(Arch::X86_64, Accelerator::Tcg { tsc_khz: None }), &[]);
        assert!(!line.contains("tsc"), "{line}");
        assert!(line.contains("no_timer_check"), "{line}");
    }

    #[test]
    fn a_comma_in_a_path_starts_no_new_option() {
        let mut machine = machine(Arch::X86_64, tcg());
        machine.root_disk.path = OsString::from_vec(b"/a,read-only=off/\xff".to_vec()).into();
        machine.name = "x,debug-threads=on".into();
        let args = argv(&machine);
        let has = |end: &[u8]| args.iter().any(|arg| arg.as_bytes().ends_with(end));
        assert!(has(b"file.file.filename=/a,,read-only=off/\xff"));
        assert!(has(b"guest=x,,debug-threads=on"));
    }

    #[test]
    fn a_console_adds_its_options_at_the_end_and_changes_no_device_before_it() {
        let devices = |machine: &Machine| {
            let args = argv(machine);
            let start = args.iter().position(|arg| arg == "-blockdev").expect("there is a disk");
            args[start..].to_vec()
        };
        for quiet in [machine(Arch::X86_64, kvm()), networked(machine(Arch::X86_64, kvm()))] {
            let loud = Machine { console: Some(Console::Socket(9)), ..quiet.clone() };
            assert!(devices(&loud).starts_with(&devices(&quiet)));
        }
    }
}
