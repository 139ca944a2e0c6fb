//! Requests, as Python states them: dictionaries whose keys are the library's names. A key that is missing has the library's
//! default; what is allowed is the library's business too.

use std::{path::PathBuf, time::Duration};

use exec_sandbox::{
    AccelRequest, Cidr, ExecRequest, Language, NetworkPolicy, Output, PortMapping, Protocol, RunRequest,
    SchedulerConfig, SessionRequest, VmSpec, parse_resolver, remote,
};
use pyo3::{exceptions::PyValueError, prelude::*};
use tokio::sync::mpsc;

/// A scheduler's configuration. `None`: the library's default.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Config {
    warm_pool_size: Option<usize>,
    package_validation: Option<bool>,
    default_memory_mib: Option<u32>,
    default_timeout: Option<f64>,
    session_idle_timeout: Option<f64>,
    images_dir: Option<PathBuf>,
    snapshot_dir: Option<PathBuf>,
    assets_url: Option<String>,
    auto_download_assets: Option<bool>,
    qemu: Option<PathBuf>,
    gateway: Option<PathBuf>,
    force_emulation: Option<bool>,
    host_memory_reserve_ratio: Option<f64>,
    memory_overcommit_ratio: Option<f64>,
    host_cpu_reserve_cores: Option<f64>,
    cpu_overcommit_ratio: Option<f64>,
    network_exceptions: Vec<String>,
    /// `None`: the host's own.
    resolvers: Option<Vec<String>>,
    /// The hosts of each language of which they are named.
    registries: Vec<(String, Vec<String>)>,
    /// The index of each language of which it is named.
    package_indexes: Vec<(String, String)>,
    package_ca: Option<PathBuf>,
    layer_dir: Option<PathBuf>,
    /// Bucket, region, prefix, most uploads at once.
    s3: Option<(String, String, String, u8)>,
}

/// A VM.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Vm {
    language: String,
    #[pyo3(default)]
    memory_mib: Option<i64>,
    #[pyo3(default)]
    packages: Vec<String>,
    network: Network,
    #[pyo3(default)]
    tenant_id: Option<String>,
    #[pyo3(default)]
    task_id: Option<String>,
}

/// What of the network is reached.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Network {
    allow: bool,
    /// `None`: what the language's packages come from; empty: everything.
    domains: Option<Vec<String>>,
    /// Port in the guest, port of the host, protocol.
    expose: Vec<(i64, Option<i64>, String)>,
}

/// A program.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Program {
    code: String,
    #[pyo3(default)]
    timeout: Option<f64>,
    #[pyo3(default)]
    env: Vec<(String, String)>,
}

impl Config {
    pub(crate) fn into_request(self) -> PyResult<SchedulerConfig> {
        let default = SchedulerConfig::default();
        let registries = self.registries.into_iter().map(|(name, hosts)| Ok((language(&name)?, hosts)));
        let indexes = self.package_indexes.into_iter().map(|(name, url)| Ok((language(&name)?, url)));
        Ok(SchedulerConfig {
            network_exceptions: read_each(&self.network_exceptions, |range| range.parse::<Cidr>())?,
            resolvers: self.resolvers.map(|resolvers| read_each(&resolvers, parse_resolver)).transpose()?,
            registries: registries.collect::<PyResult<_>>()?,
            package_indexes: indexes.collect::<PyResult<_>>()?,
            package_ca: self.package_ca,
            layer_dir: self.layer_dir,
            remote_cache: self.s3.map(remote_cache),
            default_memory_mib: self.default_memory_mib.unwrap_or(default.default_memory_mib),
            warm_pool_size: self.warm_pool_size.unwrap_or(default.warm_pool_size),
            package_validation: self.package_validation.unwrap_or(default.package_validation),
            default_timeout: seconds(self.default_timeout).unwrap_or(default.default_timeout),
            session_idle_timeout: seconds(self.session_idle_timeout).unwrap_or(default.session_idle_timeout),
            images_dir: self.images_dir,
            snapshot_dir: self.snapshot_dir,
            assets_url: self.assets_url,
            auto_download_assets: self.auto_download_assets.unwrap_or(default.auto_download_assets),
            qemu: self.qemu,
            gateway: self.gateway,
            accel: if self.force_emulation == Some(true) { AccelRequest::Tcg } else { default.accel },
            host_memory_reserve_ratio: self.host_memory_reserve_ratio.unwrap_or(default.host_memory_reserve_ratio),
            memory_overcommit_ratio: self.memory_overcommit_ratio.unwrap_or(default.memory_overcommit_ratio),
            host_cpu_reserve_cores: self.host_cpu_reserve_cores.unwrap_or(default.host_cpu_reserve_cores),
            cpu_overcommit_ratio: self.cpu_overcommit_ratio.unwrap_or(default.cpu_overcommit_ratio),
            ..default
        })
    }
}

/// The bucket in which layers and snapshots are shared. Its endpoint and credentials are in the variables of AWS.
fn remote_cache((name, region, prefix, uploads): (String, String, String, u8)) -> remote::Config {
    let bucket = remote::Bucket { region: Some(region), prefix, ..remote::Bucket::new(name) };
    remote::Config { uploads, ..remote::Config::new(remote::Place::Bucket(bucket)) }
}

impl Vm {
    pub(crate) fn into_spec(self, boot_log: Option<mpsc::Sender<Output>>) -> PyResult<VmSpec> {
        let (network, expose) = self.network.into_policy()?;
        Ok(VmSpec {
            memory_mib: mebibytes(self.memory_mib),
            packages: self.packages,
            network,
            expose,
            tenant_id: self.tenant_id,
            task_id: self.task_id,
            progress: boot_log.clone(),
            boot_log,
            ..VmSpec::new(language(&self.language)?)
        })
    }

    pub(crate) fn into_session(
        self,
        idle_timeout: Option<f64>,
        boot_log: Option<mpsc::Sender<Output>>,
    ) -> PyResult<SessionRequest> {
        Ok(SessionRequest { vm: self.into_spec(boot_log)?, idle_timeout: seconds(idle_timeout) })
    }

    pub(crate) fn into_run(self, program: Program, boot_log: bool) -> PyResult<RunRequest> {
        let spec = self.into_spec(None)?;
        let program = program.into_request();
        Ok(RunRequest {
            timeout: program.timeout,
            env: program.env,
            memory_mib: spec.memory_mib,
            packages: spec.packages,
            network: spec.network,
            expose: spec.expose,
            boot_log,
            ..RunRequest::new(spec.language, program.code)
        })
    }
}

impl Network {
    fn into_policy(self) -> PyResult<(NetworkPolicy, Vec<PortMapping>)> {
        let policy = match (self.allow, self.domains) {
            (false, _) => NetworkPolicy::Denied,
            (true, None) => NetworkPolicy::LanguageDefault,
            (true, Some(domains)) if domains.is_empty() => NetworkPolicy::Open,
            (true, Some(domains)) => NetworkPolicy::AllowList(domains),
        };
        let mapping = |(internal, external, protocol): (i64, Option<i64>, String)| {
            let (internal, external) = (port(internal)?, external.map(port).transpose()?);
            let protocol: Protocol = protocol.parse().map_err(|error| PyValueError::new_err(format!("{error}")))?;
            Ok(PortMapping { internal, external, protocol })
        };
        Ok((policy, self.expose.into_iter().map(mapping).collect::<PyResult<_>>()?))
    }
}

impl Program {
    pub(crate) fn into_request(self) -> ExecRequest {
        ExecRequest { timeout: seconds(self.timeout), env: self.env, ..ExecRequest::new(self.code) }
    }
}

pub(crate) fn language(name: &str) -> PyResult<Language> {
    name.parse().map_err(|error: exec_sandbox::UnknownLanguage| PyValueError::new_err(error.to_string()))
}

/// What each of `texts` writes.
fn read_each<T, E: std::error::Error>(texts: &[String], read: impl Fn(&str) -> Result<T, E>) -> PyResult<Vec<T>> {
    texts.iter().map(|text| read(text).map_err(|error| PyValueError::new_err(format!("{text:?}: {error}")))).collect()
}

/// What can be a port at all.
fn port(number: i64) -> PyResult<u16> {
    let impossible = |_| PyValueError::new_err(format!("a port must be between 1 and 65535, not {number}"));
    u16::try_from(number).map_err(impossible)
}

/// A time. What lies beyond all times becomes the nearest one: the library says which it wants.
pub(crate) fn seconds(time: Option<f64>) -> Option<Duration> {
    let nearest = |time: f64| if time > 0.0 { Duration::MAX } else { Duration::ZERO };
    time.map(|time| Duration::try_from_secs_f64(time).unwrap_or_else(|_beyond| nearest(time)))
}

/// Memory in MiB, in the same way.
fn mebibytes(memory: Option<i64>) -> Option<u32> {
    memory.map(|memory| u32::try_from(memory).unwrap_or(if memory < 0 { 0 } else { u32::MAX }))
}
