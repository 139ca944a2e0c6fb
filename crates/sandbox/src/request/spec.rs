//! What a VM is asked to be.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    check_memory,
    network::{NetworkPolicy, PortMapping, ValidNetwork},
    packages::PackageSet,
};
use crate::{Error, Language, Output, config::SchedulerConfig, ids::check_id, layers::Layer, network::Registries};

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
    /// Where goes what is said while packages are installed; `None`: nowhere.
    pub progress: Option<mpsc::Sender<Output>>,
}

/// A VM that may be made: every limit holds.
#[derive(Clone, Debug)]
pub(crate) struct ValidVm {
    pub(crate) language: Language,
    pub(crate) memory_mib: u32,
    pub(crate) tenant_id: Option<String>,
    pub(crate) task_id: Option<String>,
    /// What is to be installed. `None`: nothing.
    pub(crate) packages: Option<PackageSet>,
    /// Where that is installed: it is made, or found, before the VM.
    pub(crate) layer: Option<Arc<Layer>>,
    /// Whether its interpreter has loaded them before it is anybody's.
    pub(crate) preloads: bool,
    /// `None`: it has no network card.
    pub(crate) network: Option<ValidNetwork>,
    /// It is a machine of ours, in which packages are installed: it is booted, with room for many files.
    pub(crate) installs: bool,
    /// After so long without an operation it ends by itself.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) boot_log: Option<mpsc::Sender<Output>>,
    pub(crate) progress: Option<mpsc::Sender<Output>>,
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
            progress: None,
        }
    }

    /// What it means under `config` where `registries` are those of the languages.
    ///
    /// # Errors
    /// One of the invalid-input kinds, naming the value and its range.
    pub(crate) fn validate(self, config: &SchedulerConfig, registries: &Registries) -> Result<ValidVm, Error> {
        let Self { language, memory_mib, tenant_id, task_id, packages, network, expose, boot_log, progress } = self;
        let memory_mib = memory_mib.unwrap_or(config.default_memory_mib);
        check_memory(memory_mib)?;
        for (name, id) in [("tenant_id", &tenant_id), ("task_id", &task_id)] {
            id.as_deref().map_or(Ok(()), |id| check_id(name, id))?;
        }
        let packages = PackageSet::of(language, &packages, config.package_validation)?;
        let network = ValidNetwork::of((network, expose), language, config, registries)?;
        let preloads = config.package_preload && packages.is_some();
        Ok(ValidVm {
            tenant_id,
            task_id,
            packages,
            preloads,
            network,
            boot_log,
            progress,
            ..ValidVm::plain(language, memory_mib)
        })
    }
}

impl ValidVm {
    /// A VM for `language` with `memory_mib` and nothing else.
    pub(crate) fn plain(language: Language, memory_mib: u32) -> Self {
        Self {
            language,
            memory_mib,
            tenant_id: None,
            task_id: None,
            packages: None,
            layer: None,
            preloads: false,
            network: None,
            installs: false,
            idle_timeout: None,
            boot_log: None,
            progress: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Protocol, *};
    use crate::ErrorKind;

    fn validate(spec: VmSpec) -> Result<ValidVm, Error> {
        spec.validate(&SchedulerConfig::default(), &Registries::default())
    }

    #[test]
    fn tenant_and_task_are_ids_or_are_not_named() {
        let with = |tenant: Option<&str>, task: Option<&str>| {
            let (tenant_id, task_id) = (tenant.map(str::to_owned), task.map(str::to_owned));
            validate(VmSpec { tenant_id, task_id, ..VmSpec::new(Language::Raw) })
        };
        let valid = with(Some("Tenant_7-b"), None).expect("it is an id");
        assert_eq!((valid.tenant_id.as_deref(), valid.task_id), (Some("Tenant_7-b"), None));
        let error = with(Some("../x"), None).expect_err("it is a path");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().starts_with("tenant_id must be"), "{error}");
        assert!(with(None, Some("a/b")).expect_err("a slash").to_string().starts_with("task_id must be"));
    }

    #[test]
    fn packages_are_checked_and_are_a_set() {
        let with = |packages: &[&str]| {
            let packages = packages.iter().map(|package| (*package).to_owned()).collect();
            validate(VmSpec { packages, ..VmSpec::new(Language::Python) })
        };
        let set = with(&["Requests==2.32.3"]).expect("it is one").packages.expect("it is one");
        assert_eq!(set.requirements(), ["requests==2.32.3"]);
        assert_eq!(with(&["requests"]).expect_err("which version?").kind(), ErrorKind::PackageNotAllowed);
        assert!(with(&[]).expect("none are allowed").packages.is_none());
    }

    #[test]
    fn a_network_and_ports_are_checked_with_the_rest() {
        let spec = |network| VmSpec { network, ..VmSpec::new(Language::Raw) };
        assert!(validate(spec(NetworkPolicy::Denied)).expect("it is valid").network.is_none());
        assert!(validate(spec(NetworkPolicy::Open)).expect("it is valid").network.is_some());
        let list = NetworkPolicy::AllowList(vec!["*.example.com".into()]);
        assert_eq!(validate(spec(list)).expect_err("it is no domain").kind(), ErrorKind::InvalidArgument);
        let port = PortMapping { internal: 0, external: None, protocol: Protocol::Tcp };
        let error =
            validate(VmSpec { expose: vec![port], ..VmSpec::new(Language::Python) }).expect_err("it is no port");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}
