//! Requests: what a caller asked for, and what it means.
//!
//! [`RunRequest`], [`VmSpec`] and [`ExecRequest`] are what was typed. What is valid is made of them in one place, here, which
//! checks everything before any resource is taken; inside the crate an invalid value has no representation.

mod env;
mod network;
mod packages;
mod spec;

use std::time::Duration;

use exec_sandbox_wire as wire;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use wire::limits;

pub(crate) use network::ValidNetwork;
pub use network::{ExposedPort, NetworkPolicy, PortMapping, Protocol, UnknownProtocol};
pub(crate) use packages::PackageSet;
pub(crate) use spec::ValidVm;
pub use spec::VmSpec;

use crate::{Error, ErrorKind, Language, Output, config::SchedulerConfig, network::Registries};

/// Least memory that a guest works with, in MiB.
pub const MIN_MEMORY_MIB: u32 = 128;

/// Longest code, in characters.
pub const MAX_CODE_CHARS: usize = 1_048_576;

/// Longest time of a program; the shortest is a second.
pub const MAX_TIMEOUT: Duration = limits::MAX_EXEC_TIMEOUT;

/// One execution in a fresh VM, as the caller gives it. Checked when it is run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRequest {
    /// The source.
    pub code: String,
    /// What the source is written in.
    pub language: Language,
    /// How long the program may run: 1 to 300 s. `None`: the scheduler's default.
    pub timeout: Option<Duration>,
    /// Memory of the VM in MiB, at least [`MIN_MEMORY_MIB`]. `None`: the scheduler's default.
    pub memory_mib: Option<u32>,
    /// Environment variables of the program, at most 100.
    pub env: Vec<(String, String)>,
    /// Packages of the VM, as in [`VmSpec`].
    pub packages: Vec<String>,
    /// What of the network the VM reaches.
    pub network: NetworkPolicy,
    /// Ports of the VM that are reached from the host, as in [`VmSpec`].
    pub expose: Vec<PortMapping>,
    /// Stream what the guest's kernel says while it boots. It slows the boot.
    pub boot_log: bool,
}

/// One execution in a VM that exists, as the caller gives it. The language is the VM's. Checked before it is sent.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// The source.
    pub code: String,
    /// How long the program may run: 1 to 300 s. `None`: the default of the configuration.
    pub timeout: Option<Duration>,
    /// Environment variables of this execution alone, at most 100.
    pub env: Vec<(String, String)>,
}

/// An execution that may be sent: every limit holds.
#[derive(Clone, Debug)]
pub(crate) struct ValidExec {
    pub(crate) language: Language,
    pub(crate) timeout: Duration,
    pub(crate) program: wire::Program,
    /// Nothing is executed in its VM after it.
    pub(crate) is_last: bool,
    /// It is nobody's, and leaves no trace.
    pub(crate) is_rehearsal: bool,
}

impl RunRequest {
    /// A request with the scheduler's defaults for all but language and code.
    #[must_use]
    pub fn new(language: Language, code: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            language,
            timeout: None,
            memory_mib: None,
            env: Vec::new(),
            packages: Vec::new(),
            network: NetworkPolicy::Denied,
            expose: Vec::new(),
            boot_log: false,
        }
    }

    /// What the request means under `config`: a VM, and the execution for it. `output` gets the boot log if one is asked for.
    ///
    /// # Errors
    /// One of the invalid-input kinds, naming the value and its range.
    pub(crate) fn validate(
        self,
        config: &SchedulerConfig,
        registries: &Registries,
        output: Option<&mpsc::Sender<Output>>,
    ) -> Result<(ValidVm, ValidExec), Error> {
        // What a package reads of its environment when it is loaded, it has to read of this one.
        let has_env = !self.env.is_empty();
        let execution = ExecRequest { code: self.code, timeout: self.timeout, env: self.env };
        let spec = VmSpec {
            memory_mib: self.memory_mib,
            packages: self.packages,
            network: self.network,
            expose: self.expose,
            boot_log: output.filter(|_| self.boot_log).cloned(),
            progress: output.cloned(),
            ..VmSpec::new(self.language)
        };
        let execution = ValidExec { is_last: true, ..execution.validate(self.language, config)? };
        let vm = spec.validate(config, registries)?;
        Ok((ValidVm { preloads: vm.preloads && !has_env, ..vm }, execution))
    }
}

impl ExecRequest {
    /// A request with the defaults for all but the code.
    #[must_use]
    pub fn new(code: impl Into<String>) -> Self {
        Self { code: code.into(), timeout: None, env: Vec::new() }
    }

    /// What the request means in a VM for `language` under `config`.
    ///
    /// # Errors
    /// One of the invalid-input kinds, naming the value and its range.
    pub(crate) fn validate(self, language: Language, config: &SchedulerConfig) -> Result<ValidExec, Error> {
        let timeout = self.timeout.unwrap_or(config.default_timeout);
        check_timeout(timeout)?;
        let code = check_code(&self.code)?;
        env::check(&self.env)?;
        let variable = |(name, value): (String, String)| wire::EnvVar { name: name.into(), value: value.into() };
        let program = wire::Program { code: code.into(), env: self.env.into_iter().map(variable).collect() };
        Ok(ValidExec { language, timeout, program, is_last: false, is_rehearsal: false })
    }
}

impl ValidExec {
    /// A program that is nobody's, and does what most programs do: it makes an interpreter start, and warm.
    pub(crate) fn rehearsal(language: Language, timeout: Duration) -> Self {
        let code = match language {
            Language::Python => "import sys\nprint('ready', file=sys.stdout)\n",
            Language::JavaScript => "const word: string = 'ready';\nconsole.log(word);\n",
            Language::Raw => "echo ready\n",
        };
        Self::nobodys(language, timeout, code.to_owned())
    }

    /// The same, which loads these packages, too. One that cannot be loaded is passed over.
    pub(crate) fn rehearsal_with(packages: &PackageSet, timeout: Duration) -> Self {
        let names: Vec<&str> = packages.names().collect();
        // Names of packages have nothing in them that either language escapes otherwise.
        let list = format!("{names:?}");
        let code = match packages.language() {
            Language::Python => format!("{}load({list})\n", include_str!("request/rehearsal.py")),
            Language::JavaScript => format!("const NAMES = {list};\n{}", include_str!("request/rehearsal.js")),
            Language::Raw => String::new(),
        };
        Self::nobodys(packages.language(), timeout, code)
    }

    fn nobodys(language: Language, timeout: Duration, code: String) -> Self {
        let program = wire::Program { code: code.into(), env: Vec::new() };
        Self { language, timeout, program, is_last: false, is_rehearsal: true }
    }
}

pub(crate) fn check_timeout(timeout: Duration) -> Result<(), Error> {
    if timeout >= Duration::from_secs(1) && timeout <= MAX_TIMEOUT {
        return Ok(());
    }
    let given = timeout.as_secs_f64();
    Err(Error::new(ErrorKind::InvalidArgument, format!("timeout_seconds must be between 1 and 300, not {given}")))
}

pub(crate) fn check_memory(memory_mib: u32) -> Result<(), Error> {
    if memory_mib >= MIN_MEMORY_MIB {
        return Ok(());
    }
    let message = format!("memory of {memory_mib} MiB is below minimum of {MIN_MEMORY_MIB} MiB");
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

fn check_code(code: &str) -> Result<&str, Error> {
    // Bytes bound characters, so code of ordinary length is not counted.
    if code.len() > MAX_CODE_CHARS && code.chars().count() > MAX_CODE_CHARS {
        return Err(Error::new(ErrorKind::InvalidConfig, format!("Code too large: over {MAX_CODE_CHARS} characters")));
    }
    let code = code.strip_prefix('\u{feff}').unwrap_or(code);
    if code.trim().is_empty() {
        return Err(Error::new(ErrorKind::InvalidCode, "Code cannot be empty"));
    }
    if code.contains('\0') {
        return Err(Error::new(ErrorKind::InvalidCode, "Code cannot contain null bytes"));
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(change: impl FnOnce(&mut RunRequest)) -> Option<ErrorKind> {
        let mut request = RunRequest::new(Language::Python, "print(1)");
        change(&mut request);
        request.validate(&SchedulerConfig::default(), &Registries::default(), None).err().map(|error| error.kind())
    }

    #[test]
    fn what_is_missing_comes_from_the_configuration() {
        let config = SchedulerConfig::default();
        let (vm, exec) = RunRequest::new(Language::Raw, "true")
            .validate(&config, &Registries::default(), None)
            .expect("it is valid");
        assert_eq!((exec.timeout, vm.memory_mib), (config.default_timeout, config.default_memory_mib));
    }

    #[test]
    fn a_timeout_outside_its_range_is_refused() {
        for (seconds, kind) in
            [(0, Some(ErrorKind::InvalidArgument)), (1, None), (300, None), (301, Some(ErrorKind::InvalidArgument))]
        {
            assert_eq!(kind_of(|request| request.timeout = Some(Duration::from_secs(seconds))), kind, "{seconds} s");
        }
    }

    #[test]
    fn too_little_memory_is_refused() {
        assert_eq!(kind_of(|request| request.memory_mib = Some(MIN_MEMORY_MIB)), None);
        assert_eq!(kind_of(|request| request.memory_mib = Some(MIN_MEMORY_MIB - 1)), Some(ErrorKind::InvalidConfig));
    }

    #[test]
    fn packages_network_and_ports_are_those_of_the_vm() {
        assert_eq!(kind_of(|request| request.packages = vec!["x".into()]), Some(ErrorKind::PackageNotAllowed));
        assert_eq!(kind_of(|request| request.network = NetworkPolicy::Open), None);
        let nothing = NetworkPolicy::AllowList(Vec::new());
        assert_eq!(kind_of(|request| request.network = nothing), Some(ErrorKind::InvalidArgument));
        let port = PortMapping { internal: 80, external: Some(80), protocol: Protocol::Udp };
        assert_eq!(kind_of(|request| request.expose = vec![port]), Some(ErrorKind::InvalidArgument));
    }

    #[test]
    fn code_is_counted_in_characters_and_must_say_something() {
        assert_eq!(kind_of(|request| request.code = "é".repeat(MAX_CODE_CHARS)), None);
        assert_eq!(kind_of(|request| request.code = "é".repeat(MAX_CODE_CHARS + 1)), Some(ErrorKind::InvalidConfig));
        assert_eq!(kind_of(|request| request.code = " \n\t".into()), Some(ErrorKind::InvalidCode));
        assert_eq!(kind_of(|request| request.code = "a\0b".into()), Some(ErrorKind::InvalidCode));
        assert_eq!(kind_of(|request| request.code = "\u{feff}".into()), Some(ErrorKind::InvalidCode));
    }

    #[test]
    fn a_byte_order_mark_is_left_out() {
        let (_, exec) = RunRequest::new(Language::Raw, "\u{feff}true")
            .validate(&SchedulerConfig::default(), &Registries::default(), None)
            .expect("it is valid");
        assert_eq!(exec.program.code, b"true");
    }

    #[test]
    fn the_largest_valid_program_fits_the_wire() {
        let mut request = RunRequest::new(Language::Python, "\u{10ffff}".repeat(MAX_CODE_CHARS));
        request.env = (0..100).map(|n| (format!("{n:\u{10ffff}<256}"), "\u{10ffff}".repeat(4096))).collect();
        let (_, exec) =
            request.validate(&SchedulerConfig::default(), &Registries::default(), None).expect("it is valid");
        assert!(prost::Message::encoded_len(&exec.program) <= limits::MAX_PROGRAM_BYTES as usize);
    }
}
