//! What a VM is asked to be.

use tokio::sync::mpsc;

use super::check_memory;
use crate::{Error, ErrorKind, Language, Output, config::SchedulerConfig};

/// Longest name of a tenant or a task.
const MAX_ID_BYTES: usize = 128;

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
    /// [`ErrorKind::InvalidConfig`], naming the value and its range.
    pub(crate) fn validate(self, config: &SchedulerConfig) -> Result<ValidVm, Error> {
        let Self { language, memory_mib, tenant_id, task_id, network: NetworkPolicy::Denied, boot_log } = self;
        let memory_mib = memory_mib.unwrap_or(config.default_memory_mib);
        check_memory(memory_mib)?;
        for (name, id) in [("tenant_id", &tenant_id), ("task_id", &task_id)] {
            check_id(name, id.as_deref())?;
        }
        Ok(ValidVm { language, memory_mib, tenant_id, task_id, boot_log })
    }
}

fn check_id(name: &str, id: Option<&str>) -> Result<(), Error> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if id.is_none_or(|id| (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(is_plain)) {
        return Ok(());
    }
    let message = format!("{name} must be 1 to {MAX_ID_BYTES} letters, digits, `_` and `-`");
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_tenant(id: &str) -> Result<ValidVm, Error> {
        let spec = VmSpec { tenant_id: Some(id.into()), ..VmSpec::new(Language::Raw) };
        spec.validate(&SchedulerConfig::default())
    }

    #[test]
    fn an_id_is_short_and_plain() {
        for good in ["a", "Tenant_7-b", &"x".repeat(MAX_ID_BYTES)] {
            assert_eq!(with_tenant(good).expect(good).tenant_id.as_deref(), Some(good));
        }
        for bad in ["", "a b", "../x", "é", "a\n", &"x".repeat(MAX_ID_BYTES + 1)] {
            let error = with_tenant(bad).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().starts_with("tenant_id must be"), "{error}");
        }
    }

    #[test]
    fn a_task_is_named_by_the_same_rule() {
        let spec = VmSpec { task_id: Some("a/b".into()), ..VmSpec::new(Language::Raw) };
        assert!(spec.validate(&SchedulerConfig::default()).expect_err("a slash").to_string().starts_with("task_id"));
    }
}
