//! What a VM is asked to be.

use std::time::Duration;

use tokio::sync::mpsc;

use super::check_memory;
use crate::{Error, Language, Output, config::SchedulerConfig, ids::check_id};

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
    /// What of the network it reaches.
    pub network: NetworkPolicy,
    /// Where the guest's console goes while it boots and runs, which slows the boot; without it the guest has none.
    pub boot_log: Option<mpsc::Sender<Output>>,
}

/// What of the network a VM reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkPolicy {
    /// Nothing: it has no network card.
    #[default]
    Denied,
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
            network: NetworkPolicy::Denied,
            boot_log: None,
        }
    }

    /// What it means under `config`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig), naming the value and its range.
    pub(crate) fn validate(self, config: &SchedulerConfig) -> Result<ValidVm, Error> {
        let Self { language, memory_mib, tenant_id, task_id, network: NetworkPolicy::Denied, boot_log } = self;
        let memory_mib = memory_mib.unwrap_or(config.default_memory_mib);
        check_memory(memory_mib)?;
        for (name, id) in [("tenant_id", &tenant_id), ("task_id", &task_id)] {
            id.as_deref().map_or(Ok(()), |id| check_id(name, id))?;
        }
        Ok(ValidVm { language, memory_mib, tenant_id, task_id, idle_timeout: None, boot_log })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

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
}
