//! The confinement: which layers of a jail this machine, this user and this kernel can put around a child.
//!
//! Nothing is inferred from versions or privileges. A child that executes nothing rehearses the jail; the layer at which it
//! fails is left out, with the kernel's answer as the reason, until the rest holds. A layer that is missing is reported and is
//! no error: what is there is used.

use std::{
    ffi::{CString, c_int},
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use rustix::{io::Errno, thread::Gid};
use tracing::debug;

use super::{
    calls::{Filter, NoFilter},
    cgroup::{Delegated, NoGroups, VmCgroup},
    child::Step,
    jail::{Jail, Limits, Namespaces, OwnUser, Ruleset},
    landlock::{self, Allowed, LandlockError},
    spawn::{Command, Nursery, SpawnError},
};

/// The device of Linux's hypervisor.
const KVM: &str = "/dev/kvm";

/// Memory of the group in which a rehearsal takes place: a process that executes nothing needs none of its own.
const REHEARSAL_MEMORY_BYTES: u64 = 64 << 20;

/// The first descriptor of a rehearsal's files.
const FIRST_FILE: i32 = 3;

/// What is to be confined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// An id that no VM has.
    pub(crate) id: &'a str,
    pub(crate) program: &'a Path,
    /// The program's file, if it is executed as it was opened, which needs no right to go where it lies.
    pub(crate) opened: Option<&'a File>,
    /// What it reads, by descriptors that it inherits and opens again.
    pub(crate) files: &'a [&'a File],
    /// A directory of which it is told later which files it is to read.
    pub(crate) directory: Option<&'a File>,
    /// Whether it uses [`KVM`].
    pub(crate) kvm: bool,
}

/// The layers, each there or missing for a reason. The others of a jail need nothing that could be missing.
#[derive(Debug)]
pub(crate) struct Confinement {
    pub(crate) landlock: Result<Ruleset, Missing>,
    pub(crate) own_user: Result<OwnUser, Missing>,
    pub(crate) namespaces: Result<Namespaces, Missing>,
    pub(crate) calls: Result<Filter, Missing>,
    pub(crate) groups: Result<Delegated, Missing>,
}

/// Why a layer is missing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Missing {
    #[error(transparent)]
    Landlock(#[from] LandlockError),
    #[error(transparent)]
    Filter(#[from] NoFilter),
    #[error("it is not QEMU that is started, but what starts it")]
    Script,
    #[error("making a network without interfaces")]
    Network(#[source] io::Error),
    #[error("no other user may use {KVM}, and no group")]
    KvmOfOneUser,
    #[error("{step}")]
    Refused { step: Step, source: Errno },
    #[error(transparent)]
    Groups(#[from] NoGroups),
    #[error("using a control group")]
    Group(#[source] io::Error),
}

/// One layer, for people.
#[derive(Clone, Debug)]
pub(crate) struct Layer<'a> {
    pub(crate) name: String,
    pub(crate) missing: Option<&'a Missing>,
}

impl Missing {
    /// What brings the layer back.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Script | Self::Landlock(LandlockError::Program { .. }) => {
                "name QEMU itself in EXEC_SANDBOX_QEMU, not a script that starts it"
            }
            Self::Landlock(_) | Self::Refused { step: Step::Landlock, .. } => {
                "use Linux 5.13 or newer with landlock among its security modules (lsm=)"
            }
            Self::Filter(_) | Self::Refused { step: Step::Filter, .. } => {
                "use a kernel with filters of system calls (CONFIG_SECCOMP_FILTER)"
            }
            Self::KvmOfOneUser => "give /dev/kvm to a group that may read and write it",
            Self::Refused { step: Step::Reach, .. } => {
                "make QEMU, the gateway and the image's files readable for every user"
            }
            Self::Refused { step: Step::OwnUser, source: Errno::INVAL } => {
                "let this user namespace have the users from 2013265920 to 2017460224"
            }
            Self::Network(_) | Self::Refused { .. } => "run as root, with the capabilities that it has on a host",
            Self::Groups(_) | Self::Group(_) => {
                "run as a service with Delegate=yes and DelegateSubgroup=, or name a control group in EXEC_SANDBOX_CGROUP"
            }
        }
    }
}

impl Confinement {
    /// Finds the layers for `subject`, with control groups in the group `named` if there is one. Blocks for a moment.
    pub(crate) fn find(subject: &Subject<'_>, named: Option<&Path>) -> Self {
        let landlock = rules(subject).map_err(Missing::from);
        let mut found = Self {
            calls: filter(&landlock),
            landlock,
            own_user: own_user(subject),
            namespaces: Namespaces::new().map_err(Missing::Network),
            groups: Delegated::find(named).map_err(Missing::from),
        };
        let rehearsed =
            Nursery::new().map_err(SpawnError::from).and_then(|mut nursery| found.rehearse(&mut nursery, subject));
        if let Err(error) = rehearsed {
            // The real one will fail in the same way and say so.
            debug!(%error, "a rehearsal failed for no layer's reason");
        }
        found
    }

    /// What confines a QEMU.
    pub(crate) fn jail(&self) -> Jail {
        Jail {
            limits: Some(Limits::QEMU),
            namespaces: self.namespaces.as_ref().ok().cloned(),
            own_user: self.own_user.as_ref().ok().cloned(),
            landlock: self.landlock.as_ref().ok().cloned(),
            calls: self.calls.as_ref().ok().cloned(),
        }
    }

    /// What confines the gateway `program`, and why it has no user of its own if it has none. Its network is the host's, which is
    /// what it is for; the other layers it puts around itself, once it has its sockets. Blocks for a moment.
    pub(crate) fn of_gateway(program: &Path) -> (Jail, Option<Missing>) {
        let whole = Jail { limits: Some(Limits::GATEWAY), own_user: Some(OwnUser::new(Vec::new())), ..Jail::default() };
        let rehearsed = Nursery::new().map_err(SpawnError::from).and_then(|mut nursery| {
            let mut command = Command::new(program.into(), Vec::new());
            command.jail(whole.clone());
            nursery.rehearse(command, &[])
        });
        match rehearsed {
            Err(SpawnError::Child { step: step @ (Step::OwnUser | Step::Reach), errno: source, .. }) => {
                (Jail { own_user: None, ..whole }, Some(Missing::Refused { step, source }))
            }
            // Of what else failed the real one will tell.
            _ => (whole, None),
        }
    }

    /// The control group of VM `id`, if there are any.
    pub(crate) fn group(&self, id: &str, memory_bytes: u64) -> io::Result<Option<VmCgroup>> {
        self.groups.as_ref().ok().map(|groups| groups.create(id, memory_bytes)).transpose()
    }

    /// All layers.
    pub(crate) fn layers(&self) -> [Layer<'_>; 5] {
        let landlock = landlock::abi().map_or_else(|| "Landlock".into(), |abi| format!("Landlock ABI {abi}"));
        [
            Layer { name: landlock, missing: self.landlock.as_ref().err() },
            Layer { name: "own uid".into(), missing: self.own_user.as_ref().err() },
            Layer { name: "namespaces net ipc uts".into(), missing: self.namespaces.as_ref().err() },
            Layer { name: "filter of system calls".into(), missing: self.calls.as_ref().err() },
            Layer { name: "cgroup v2".into(), missing: self.groups.as_ref().err() },
        ]
    }

    /// Leaves out what fails until a child gets through.
    fn rehearse(&mut self, nursery: &mut Nursery, subject: &Subject<'_>) -> Result<(), SpawnError> {
        loop {
            let (mut command, opens) = rehearsal(subject, self.jail())?;
            let group = self.group(subject.id, REHEARSAL_MEMORY_BYTES);
            if let Err(error) = group.and_then(|group| group.map_or(Ok(()), |group| command.join(group))) {
                self.groups = Err(Missing::Group(error));
            }
            match nursery.rehearse(command, &opens) {
                Ok(()) => return Ok(()),
                Err(SpawnError::Child { step, program, errno }) => {
                    if !self.leave_out(step, errno) {
                        return Err(SpawnError::Child { step, program, errno });
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Leaves out the layer of `step`. `false`: it is none's, or none is left.
    fn leave_out(&mut self, step: Step, errno: Errno) -> bool {
        let refused = Missing::Refused { step, source: errno };
        match step {
            Step::ControlGroup if self.groups.is_ok() => self.groups = Err(refused),
            Step::Filter if self.calls.is_ok() => self.calls = Err(refused),
            Step::Namespaces if self.namespaces.is_ok() => self.namespaces = Err(refused),
            Step::OwnUser | Step::Reach if self.own_user.is_ok() => self.own_user = Err(refused),
            Step::Landlock | Step::Reach if self.landlock.is_ok() => self.landlock = Err(refused),
            _ => return false,
        }
        true
    }
}

/// Reading what `subject` reads, starting it, and the hypervisor if it uses that.
fn rules(subject: &Subject<'_>) -> Result<Ruleset, LandlockError> {
    let mut allowed = Allowed::to_start(subject.program)?;
    if subject.kvm {
        allowed.use_devices.push(KVM.into());
    }
    let read: Vec<&File> = subject.files.iter().copied().chain(subject.directory).collect();
    allowed.to_kernel(&read)
}

/// What QEMU has no use for; what a script that starts it has use for nobody knows.
fn filter(landlock: &Result<Ruleset, Missing>) -> Result<Filter, Missing> {
    match landlock {
        Err(Missing::Landlock(LandlockError::Program { .. })) => Err(Missing::Script),
        _ => Ok(Filter::of_qemu()?),
    }
}

/// A user in no group but that of the hypervisor, if that is what opens it.
fn own_user(subject: &Subject<'_>) -> Result<OwnUser, Missing> {
    // What cannot be examined will not open either.
    let device = if subject.kvm { fs::metadata(KVM).ok() } else { None };
    let groups = match device {
        Some(kvm) if kvm.mode() & 0o006 == 0o006 => Vec::new(),
        Some(kvm) if kvm.mode() & 0o060 == 0o060 => vec![Gid::from_raw(kvm.gid())],
        Some(_) => return Err(Missing::KvmOfOneUser),
        None => Vec::new(),
    };
    Ok(OwnUser::new(groups))
}

/// A child that gets what `subject` gets, and what it opens.
fn rehearsal(subject: &Subject<'_>, jail: Jail) -> io::Result<(Command, Vec<(CString, c_int)>)> {
    let mut command = Command::new(subject.program.into(), Vec::new());
    if let Some(file) = subject.opened {
        command.execute(file.as_fd().try_clone_to_owned()?);
    }
    command.jail(jail);
    let mut opens = Vec::new();
    for (target, file) in (FIRST_FILE..).zip(subject.files) {
        command.pass(file.as_fd().try_clone_to_owned()?, target);
        opens.push((CString::new(format!("/proc/self/fd/{target}"))?, libc::O_RDONLY));
    }
    if subject.kvm {
        opens.push((CString::new(KVM)?, libc::O_RDWR));
    }
    Ok((command, opens))
}
