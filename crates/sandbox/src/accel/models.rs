//! Which processor model QEMU starts with on KVM.
//!
//! `-cpu host` offers the guest all that KVM says it supports, and on some hosts KVM then refuses a register that goes with it, which
//! ends QEMU. So models are tried from the best one down, each with a QEMU that has no guest and is told to quit.
//!
//! QEMU greets on QMP before it has made the processors: only the answer to a command proves them.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use exec_sandbox_qemu::{
    Arch,
    qmp::{self, Correlator, Decoder, Settled},
};

use super::Fault;

/// The models, best first. `arch-capabilities` is the usual culprit; the last is fixed and as old as programs for this decade allow.
pub(super) const LADDER: &[&str] = if cfg!(target_arch = "x86_64") {
    &["host", "host,-arch-capabilities", "max,-arch-capabilities", "Nehalem"]
} else {
    &["host", "max"]
};

/// QEMU takes 20 ms to its first answer; a busy machine a hundred times that.
const DEADLINE: Duration = Duration::from_secs(3);

/// What QEMU says when it fails is a line or two.
const MAX_STDERR_BYTES: u64 = 4096;

/// QEMU did not start with a model.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModelFault {
    #[error("starting QEMU")]
    Spawn(#[source] io::Error),
    #[error("QEMU ended with {status}: {message}")]
    Ended { status: ExitStatus, message: String },
    #[error("QEMU did not answer in {} s", DEADLINE.as_secs())]
    Silent,
}

/// Every model was refused.
#[derive(Debug)]
pub(super) struct NoModel(Vec<(&'static str, ModelFault)>);

/// The first of the models that `start` accepts.
pub(super) fn first_that_starts(
    models: &[&'static str],
    mut start: impl FnMut(&str) -> Result<(), ModelFault>,
) -> Result<&'static str, NoModel> {
    let mut refusals = Vec::new();
    for &model in models {
        match start(model) {
            Ok(()) => return Ok(model),
            Err(fault) => {
                tracing::debug!(model, %fault, "QEMU does not start with this processor model");
                refusals.push((model, fault));
            }
        }
    }
    Err(NoModel(refusals))
}

/// Starts `qemu` on KVM with this model and no guest, and ends it after its first answer.
pub(super) fn start(qemu: &Path, model: &str) -> Result<(), ModelFault> {
    let board = Arch::of_host().map_or("none", Arch::machine_type);
    let mut command = Command::new(qemu);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S", "-accel", "kvm", "-m", "16M"]);
    command.args(["-M", board, "-cpu", model, "-qmp", "stdio"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    die_with_parent(&mut command);
    let mut child = command.spawn().map_err(ModelFault::Spawn)?;
    let answered = thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        scope.spawn(move || {
            let answered = stdin.zip(stdout).is_some_and(|(stdin, stdout)| converse(stdin, stdout).unwrap_or(false));
            let _ = sender.send(answered);
        });
        let answered = receiver.recv_timeout(DEADLINE);
        // After its answer it quits by itself; killed, it does so for certain, and the thread above reads the end of its output.
        let _ = child.kill();
        answered
    });
    finish(child, answered)
}

fn finish(mut child: Child, answered: Result<bool, mpsc::RecvTimeoutError>) -> Result<(), ModelFault> {
    let mut message = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_STDERR_BYTES).read_to_end(&mut message);
    }
    let status = child.wait().map_err(ModelFault::Spawn)?;
    match answered {
        Ok(true) => Ok(()),
        Ok(false) => Err(ModelFault::Ended { status, message: String::from_utf8_lossy(&message).trim().to_owned() }),
        Err(_) => Err(ModelFault::Silent),
    }
}

/// Asks for QEMU's state over QMP. `Ok(true)`: it was told.
fn converse(mut stdin: impl io::Write, mut stdout: impl io::Read) -> io::Result<bool> {
    let (mut decoder, mut correlator) = (Decoder::default(), Correlator::default());
    let mut question = None;
    for command in [qmp::Command::Capabilities, qmp::Command::QueryStatus] {
        let (id, bytes) = correlator.issue(command).map_err(io::Error::other)?;
        stdin.write_all(&bytes)?;
        question = Some(id);
    }
    let mut bytes = [0; 4096];
    loop {
        while let Some(message) = decoder.next_message().map_err(io::Error::other)? {
            if let Settled::Reply { id, result } = correlator.settle(message)
                && Some(id) == question
            {
                return Ok(result.is_ok());
            }
        }
        match stdout.read(&mut bytes)? {
            0 => return Ok(false),
            count => decoder.push(bytes.get(..count).unwrap_or_default()),
        }
    }
}

/// Has the kernel kill the child when this thread ends, which waits for it: so it does not outlive a killed process of ours.
fn die_with_parent(command: &mut Command) {
    let hook = || Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?);
    #[expect(unsafe_code, reason = "a hook between fork and exec")]
    // SAFETY: the hook makes one system call and neither allocates nor locks.
    unsafe {
        command.pre_exec(hook);
    }
}

impl From<NoModel> for Fault {
    fn from(NoModel(refusals): NoModel) -> Self {
        let said: Vec<String> = refusals.iter().map(|(model, fault)| format!("-cpu {model}: {fault}")).collect();
        Self {
            reason: format!(
                "KVM runs a test guest, but QEMU starts on it with no processor model ({})",
                said.join("; ")
            ),
            remedy: "use software emulation, or another build of QEMU".into(),
            unsure: refusals.iter().any(|(_, fault)| matches!(fault, ModelFault::Silent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_stops_at_the_first_model_that_starts() {
        let mut tried = Vec::new();
        let found = first_that_starts(&["a", "b", "c"], |model| {
            tried.push(model.to_owned());
            if model == "b" { Ok(()) } else { Err(ModelFault::Silent) }
        });
        assert_eq!(found.expect("b starts"), "b");
        assert_eq!(tried, ["a", "b"]);
    }

    #[test]
    fn if_none_starts_the_reason_names_each_with_what_qemu_said() {
        let status = ExitStatus::default();
        let refusals = first_that_starts(&["a", "b"], |model| {
            Err(ModelFault::Ended { status, message: format!("{model} has a bad register") })
        });
        let fault = Fault::from(refusals.expect_err("none starts"));
        assert!(
            fault.reason.contains("-cpu a: QEMU ended with exit status: 0: a has a bad register; -cpu b:"),
            "{fault}"
        );
        assert!(!fault.unsure);
    }

    #[test]
    fn a_greeting_alone_is_no_answer() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}"#;
        let line = [&greeting[..], b"\n"].concat();
        assert!(!converse(io::sink(), line.as_slice()).expect("it is QMP"));
        let answer =
            [&line[..], b"{\"return\": {}, \"id\": 0}\n{\"return\": {\"status\": \"prelaunch\"}, \"id\": 1}\n"]
                .concat();
        assert!(converse(io::sink(), answer.as_slice()).expect("it is QMP"));
    }

    #[test]
    fn a_program_that_is_not_there_or_says_nothing_is_a_refusal() {
        assert!(matches!(start(Path::new("/nonexistent/qemu"), "host"), Err(ModelFault::Spawn(_))));
        assert!(matches!(start(Path::new("/bin/false"), "host"), Err(ModelFault::Ended { .. })));
    }

    #[test]
    #[ignore = "needs qemu-system-x86_64 and /dev/kvm"]
    fn a_model_that_qemu_knows_starts_and_another_is_refused_in_its_words() {
        let qemu = Path::new("qemu-system-x86_64");
        first_that_starts(LADDER, |model| start(qemu, model)).expect("one of the ladder starts");
        let Err(ModelFault::Ended { message, .. }) = start(qemu, "no-such-model") else { panic!("it is no model") };
        assert!(message.contains("no-such-model"), "{message}");
    }
}
