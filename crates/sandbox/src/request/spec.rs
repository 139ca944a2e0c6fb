//! What a VM is asked to be.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    check_memory,
    network::{self, NetworkPolicy, PortMapping},
    packages,
};
use crate::{Error, ErrorKind, Language, Output, config::SchedulerConfig, ids::check_id};

/// A VM, as the caller wants it. Checked when it is created.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// The language of its executions.
    pub language: Language,
    /// Memory in MiB, at least [`MIN_MEMORY_MIB`](super::MIN_MEMORY_MIB). `None`: the default of the configuration.
    pub memory_mib: Option<u32>,
    /// On whose behalf it runs, for listings and logs: 1 to 128 letters, digits, `_` and `-`.
    pub tenant_id: Option<String>,
    /// What it runs for, for listings and logs; of the same form.
    pub task_id: Option<String>,
    /// Packages to install, at most 50, each pinned: `name==version` for Python, `name@version` for JavaScript, none for the shell.
    pub packages: Vec<String>,
    /// What of the network it reaches.
    pub network: NetworkPolicy,
    /// Its ports that are reached from the host, at most 10.
    pub expose: Vec<PortMapping>,
    /// Where the guest's console goes while it boots and runs, which slows the boot; without it the guest has none.
    pub boot_log: Option<mpsc::Sender<Output>>,
}

/// A VM that may be made: every limit holds.
#[derive(Clone, Debug)]
pub(crate) struct ValidVm {
    pub(crate) language: Language,
    pub(crate) memory_mib: u32,
    pub(crate) tenant_id: Option<String>,
    pub(crate) task_id: Option<String>,
    /// After so long without an operation it ends by itself.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) boot_log: Option<mpsc::Sender<Output>>,
}

impl VmSpec {
    /// A VM for `language` with the defaults for all else.
    #[must_use]
    pub fn new(language: Language) -> Self {
        Self {
            language,
            memory_mib: None,
            tenant_id: None,
            task_id: None,
            packages: Vec::new(),
            network: NetworkPolicy::Denied,
            expose: Vec::new(),
            boot_log: None,
        }
    }

    /// What it means under `config`.
    ///
    /// # Errors
    /// One of the invalid-input kinds, naming the value and its range, or what this version cannot give a VM.
    pub(crate) fn validate(self, config: &SchedulerConfig) -> Result<ValidVm, Error> {
        let Self { language, memory_mib, tenant_id, task_id, packages, network, expose, boot_log } = self;
        let memory_mib = memory_mib.unwrap_or(config.default_memory_mib);
        check_memory(memory_mib)?;
        for (name, id) in [("tenant_id", &tenant_id), ("task_id", &task_id)] {
            id.as_deref().map_or(Ok(()), |id| check_id(name, id))?;
        }
        packages::check(language, &packages)?;
        network::check_policy(&network)?;
        network::check_ports(&expose)?;
        check_supported(&packages, &network, &expose)?;
        Ok(ValidVm { language, memory_mib, tenant_id, task_id, idle_timeout: None, boot_log })
    }
}

/// Refuses what is valid and what no VM of this version has.
fn check_supported(packages: &[String], network: &NetworkPolicy, expose: &[PortMapping]) -> Result<(), Error> {
    let asked = [
        (!packages.is_empty(), "packages"),
        (*network != NetworkPolicy::Denied, "a network"),
        (!expose.is_empty(), "exposed ports"),
    ];
    let asked: Vec<&str> = asked.into_iter().filter_map(|(is_asked, what)| is_asked.then_some(what)).collect();
    if asked.is_empty() {
        return Ok(());
    }
    let message = format!("creating a VM with {}: this version cannot do that yet", asked.join(" and "));
    Err(Error::new(ErrorKind::Unsupported, message))
}

#[cfg(test)]
mod tests {
    use super::{super::Protocol, *};

    #[test]
    fn tenant_and_task_are_ids_or_are_not_named() {
        let with = |tenant: Option<&str>, task: Option<&str>| {
            let (tenant_id, task_id) = (tenant.map(str::to_owned), task.map(str::to_owned));
            VmSpec { tenant_id, task_id, ..VmSpec::new(Language::Raw) }.validate(&SchedulerConfig::default())
        };
        let valid = with(Some("Tenant_7-b"), None).expect("it is an id");
        assert_eq!((valid.tenant_id.as_deref(), valid.task_id), (Some("Tenant_7-b"), None));
        let error = with(Some("../x"), None).expect_err("it is a path");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().starts_with("tenant_id must be"), "{error}");
        assert!(with(None, Some("a/b")).expect_err("a slash").to_string().starts_with("task_id must be"));
    }

    #[test]
    fn what_this_version_cannot_do_is_said_of_a_request_that_is_valid() {
        let refused = |change: fn(&mut VmSpec)| {
            let mut spec = VmSpec::new(Language::Python);
            change(&mut spec);
            let error = spec.validate(&SchedulerConfig::default()).expect_err("it is refused");
            (error.kind(), error.to_string())
        };
        let port = |internal| PortMapping { internal, external: None, protocol: Protocol::Tcp };
        for (change, what) in [
            ((|spec| spec.packages = vec!["requests==2.32.3".into()]) as fn(&mut VmSpec), "packages"),
            (|spec| spec.network = NetworkPolicy::LanguageDefault, "a network"),
            (|spec| spec.network = NetworkPolicy::Open, "a network"),
            (|spec| spec.network = NetworkPolicy::AllowList(vec!["example.com".into()]), "a network"),
        ] {
            let expected = format!("creating a VM with {what}: this version cannot do that yet");
            assert_eq!(refused(change), (ErrorKind::Unsupported, expected));
        }
        let spec = VmSpec { expose: vec![port(80)], network: NetworkPolicy::Open, ..VmSpec::new(Language::Raw) };
        let error = spec.validate(&SchedulerConfig::default()).expect_err("it is refused");
        assert!(error.to_string().contains("a network and exposed ports"), "{error}");
        // What is wrong is said first: it would be wrong in any version.
        assert_eq!(refused(|spec| spec.packages = vec!["requests".into()]).0, ErrorKind::PackageNotAllowed);
        assert_eq!(
            refused(|spec| spec.network = NetworkPolicy::AllowList(vec!["*.example.com".into()])).0,
            ErrorKind::InvalidArgument
        );
        let spec = VmSpec { expose: vec![port(0)], ..VmSpec::new(Language::Python) };
        let error = spec.validate(&SchedulerConfig::default()).expect_err("it is no port");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}
