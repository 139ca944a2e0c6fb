//! Configuration of a scheduler: plain data, every field of which takes effect.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use exec_sandbox_gateway::{
    config::MAX_RESOLVERS,
    policy::{Cidr, Exceptions},
};

use crate::{
    Error, ErrorKind, Language,
    accel::AccelRequest,
    cache_dir::Limits,
    layers::{self, Indexes},
    network::Registries,
    paths::{self, Environment},
    private_dir, request, session,
    snapshot::Store,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// More than a machine keeps busy, and each VM takes its memory.
const MOST_POOL_SIZE: usize = 64;

/// Least that snapshots may take: with less, each would be made in vain.
const LEAST_SNAPSHOT_MAX_BYTES: u64 = 256 * MIB;
/// Memory of the machine that installs packages, where nobody says another.
pub(crate) const PACKAGE_INSTALL_MEMORY_MIB: u32 = 2048;

/// The same for layers of packages.
const LEAST_LAYER_MAX_BYTES: u64 = 64 * MIB;
const MOST_CACHE_BYTES: u64 = 1024 * GIB;

/// What a [`Scheduler`](crate::Scheduler) is started with.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Memory of a VM whose request names none, in MiB.
    pub default_memory_mib: u32,
    /// Time of a program whose request names none.
    pub default_timeout: Duration,
    /// After so long without an operation a session ends that names no time of its own: 10 to 3600 s.
    pub session_idle_timeout: Duration,
    /// From QEMU's start to the agent's first answer, 1 to 600 s; then the VM is given up. Half a second on an idle machine
    /// under emulation; a host that boots many at once takes its time, and a guest that hangs must not wait for ever.
    pub boot_timeout: Duration,
    /// The image that VMs boot.
    pub image: String,
    /// Where images are. `None`: `$EXEC_SANDBOX_IMAGES_DIR`, else `images` in the cache directory.
    pub images_dir: Option<PathBuf>,
    /// Where images are published: an `https`, `http` or `file` URL, or a directory, laid out like `images_dir`. `None`:
    /// `$EXEC_SANDBOX_ASSETS_URL`, else nowhere. It is believed: whoever can write there chooses what VMs boot.
    pub assets_url: Option<String>,
    /// Whether a start fetches an image that is not there. One that is damaged is mended by [`pull`](crate::assets::pull) alone.
    pub auto_download_assets: bool,
    /// Nothing is fetched by itself, and nothing at all over a network. `$EXEC_SANDBOX_OFFLINE=true` turns it on, too.
    pub offline: bool,
    /// Where what can be made again is kept. `None`: `$EXEC_SANDBOX_CACHE_DIR`, else the user's cache directory.
    pub cache_dir: Option<PathBuf>,
    /// Whether packages have to be among those that are used most, by name: what is not may be a slip, under whose name somebody else
    /// has published something.
    pub package_validation: bool,
    /// The index that each language's packages come from: HTTPS, port 443, a password in it if it needs one. A language that is not in it:
    /// `$EXEC_SANDBOX_PACKAGE_INDEXES` (`python=https://a.example/simple/ javascript=https://b.example/`), else what the package managers'
    /// own variables say (`UV_DEFAULT_INDEX`, `UV_INDEX_URL`, `PIP_INDEX_URL`; `npm_config_registry`), else the image. An index that
    /// somebody has named is asked at which hosts its files are.
    pub package_indexes: BTreeMap<Language, String>,
    /// A file of the certificates, in PEM, that indexes are known by. `None`: `$EXEC_SANDBOX_PACKAGE_CA`, else `$SSL_CERT_FILE`, else this
    /// system's.
    pub package_ca: Option<PathBuf>,
    /// Memory of the machine in which packages are installed, in MiB: half of it, less what they take unpacked, is room for them. 512 to
    /// 65,536. `None`: `$EXEC_SANDBOX_PACKAGE_MEMORY_MIB`, else 2048.
    pub package_install_memory_mib: Option<u32>,
    /// Whether a VM's interpreter has loaded its packages before its first program runs, as part of the snapshot that it is a copy of: they
    /// are imported at once then, and have read their environment. A run that brings environment variables gets one that has not.
    /// `$EXEC_SANDBOX_PACKAGE_PRELOAD=false` turns it off.
    pub package_preload: bool,
    /// Where layers of packages are kept. `None`: `package-layers` in the cache directory. It has to be this user's alone.
    pub layer_dir: Option<PathBuf>,
    /// What all layers of packages together may take of the disk: 64 MiB to 1 TiB.
    pub layer_max_bytes: u64,
    /// After so long without use a layer is removed: a minute to a year.
    pub layer_max_age: Duration,
    /// VMs of each language that are kept ready, with the default memory and no network: at most 64. 0: none, and nothing is started
    /// ahead of need.
    pub warm_pool_size: usize,
    /// QEMUs that are started and wait to be told whose guest they run, for what the ready VMs do not serve: at most 64. `None`: as many as
    /// ready VMs of a language. Without snapshots there are none.
    pub blank_pool_size: Option<usize>,
    /// Whether VMs start as copies of a guest that was saved when its interpreter was warm. If not, each is booted; what QEMU has
    /// translated for guests that were saved before spares it work all the same.
    pub snapshots: bool,
    /// Where snapshots of memory are kept. `None`: `memory-snapshots` in the cache directory. It has to be this user's alone.
    pub snapshot_dir: Option<PathBuf>,
    /// What all snapshots of memory together may take of the disk: 256 MiB, which is one or two of them, to 1 TiB.
    pub snapshot_max_bytes: u64,
    /// After so long without use a snapshot of memory is removed: a minute to a year.
    pub snapshot_max_age: Duration,
    /// For so long nobody tries to make a snapshot of memory after that has failed, or after two within so long could not be restored: at most
    /// an hour. Each try costs a caller time.
    pub snapshot_retry_after: Duration,
    /// Where layers of packages and snapshots of memory are shared with other machines. `None`: `$EXEC_SANDBOX_REMOTE_CACHE`
    /// (`s3://bucket/prefix`, with the usual variables of AWS, or a directory), else nowhere. It is believed: whoever can write there
    /// chooses what VMs run.
    pub remote_cache: Option<exec_sandbox_remote::Config>,
    /// Where running VMs have their directories. `None`: `$EXEC_SANDBOX_RUN_DIR`, else the user's runtime directory.
    pub run_dir: Option<PathBuf>,
    /// The QEMU program. `None`: `$EXEC_SANDBOX_QEMU`, else the image's own, else `qemu-system-<arch>` on the `PATH`.
    pub qemu: Option<PathBuf>,
    /// The control group (of version 2) in which each VM's own is made. `None`: `$EXEC_SANDBOX_CGROUP`, else that of this process
    /// or the one around it, if groups with memory and pids can be made there. Without one, VMs have no limits of the host's.
    pub cgroup: Option<PathBuf>,
    /// The program that is the network of a VM which has one. `None`: `$EXEC_SANDBOX_GATEWAY`, else `exec-sandbox-gateway` beside this
    /// program or on the `PATH`. It is looked for when it is needed.
    pub gateway: Option<PathBuf>,
    /// Ranges that VMs may reach although they are not the internet's: private ones, this machine's own, a cloud's. None by default. A
    /// metadata address has to be listed by itself.
    pub network_exceptions: Vec<Cidr>,
    /// Who is asked for names on behalf of VMs, in this order: 1 to 8. `None`: those of `/etc/resolv.conf`, read for each VM.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// Hosts by language that [`NetworkPolicy::LanguageDefault`](crate::NetworkPolicy) means. A language that is not in it:
    /// `$EXEC_SANDBOX_REGISTRIES` (`python=a.example,b.example javascript=c.example`), else what the image says.
    pub registries: BTreeMap<Language, Vec<String>>,
    /// How the guest's processor is run. `$EXEC_SANDBOX_FORCE_EMULATION=true` turns `Auto` into `Tcg`.
    pub accel: AccelRequest,
    /// Share of the host's memory that VMs never get, 0.01 to 0.5.
    pub host_memory_reserve_ratio: f64,
    /// How many times the memory that is left may be promised to VMs, 1 to 10: few of them use all of theirs at once. What the
    /// host really has available is looked at before each VM.
    pub memory_overcommit_ratio: f64,
    /// Cores of the host that VMs never get, 0 to 16. One VM may always execute.
    pub host_cpu_reserve_cores: f64,
    /// How many times the cores that are left may boot or execute at once, 1 to 20.
    pub cpu_overcommit_ratio: f64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            default_memory_mib: 192,
            default_timeout: Duration::from_secs(30),
            session_idle_timeout: Duration::from_secs(300),
            boot_timeout: Duration::from_secs(60),
            image: "standard".into(),
            images_dir: None,
            assets_url: None,
            auto_download_assets: true,
            offline: false,
            cache_dir: None,
            package_validation: true,
            package_indexes: BTreeMap::new(),
            package_ca: None,
            package_install_memory_mib: None,
            package_preload: true,
            layer_dir: None,
            layer_max_bytes: 8 * GIB,
            layer_max_age: 30 * DAY,
            warm_pool_size: 0,
            blank_pool_size: None,
            snapshots: true,
            snapshot_dir: None,
            snapshot_max_bytes: 4 * GIB,
            snapshot_max_age: 14 * DAY,
            snapshot_retry_after: Duration::from_secs(10 * 60),
            remote_cache: None,
            run_dir: None,
            qemu: None,
            cgroup: None,
            gateway: None,
            network_exceptions: Vec::new(),
            resolvers: None,
            registries: BTreeMap::new(),
            accel: AccelRequest::Auto,
            host_memory_reserve_ratio: 0.08,
            memory_overcommit_ratio: 5.0,
            host_cpu_reserve_cores: 0.5,
            cpu_overcommit_ratio: 2.0,
        }
    }
}

/// A configuration with every choice made.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) config: SchedulerConfig,
    pub(crate) images_dir: PathBuf,
    pub(crate) assets_url: Option<String>,
    pub(crate) offline: bool,
    pub(crate) cache_dir: PathBuf,
    pub(crate) snapshot_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) accel: AccelRequest,
    pub(crate) qemu: Option<PathBuf>,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) gateway: Option<PathBuf>,
    /// The configuration's and the environment's; not the image's.
    pub(crate) registries: Registries,
    /// The same of indexes.
    pub(crate) indexes: Indexes,
    pub(crate) package_ca: Option<PathBuf>,
    pub(crate) remote_cache: Option<exec_sandbox_remote::Config>,
}

impl SchedulerConfig {
    /// Where what can be made again is kept under this configuration: its own choice, or what the environment says.
    ///
    /// # Errors
    /// [`ErrorKind::Host`](crate::ErrorKind::Host) if neither says anything.
    pub fn cache_dir_in_use(&self) -> Result<PathBuf, Error> {
        self.cache_dir_in(&Environment::read())
    }

    /// The directory of running VMs under this configuration, made if it is missing: this user's alone, gone after a boot of the machine,
    /// and with a path that is short enough for a socket in it.
    ///
    /// # Errors
    /// [`ErrorKind::Host`](crate::ErrorKind::Host): it cannot be made, or others may write to it. An invalid field.
    pub fn run_dir_in_use(&self) -> Result<PathBuf, Error> {
        let run_dir = self.clone().resolve(&Environment::read())?.run_dir;
        private_dir::create(&run_dir).map_err(|error| {
            Error::new(ErrorKind::Host, format!("making the run directory {}", run_dir.display()))
                .because(error)
                .remedied_by("name another one in EXEC_SANDBOX_RUN_DIR")
        })?;
        Ok(run_dir)
    }

    /// Checks every field and fills what is missing from the environment.
    pub(crate) fn resolve(self, environment: &Environment) -> Result<Settings, Error> {
        request::check_memory(self.default_memory_mib)?;
        request::check_timeout(self.default_timeout)?;
        session::check_idle_timeout(self.session_idle_timeout)?;
        check_range("boot_timeout", self.boot_timeout.as_secs_f64(), 1.0, 600.0)?;
        check_range("host_memory_reserve_ratio", self.host_memory_reserve_ratio, 0.01, 0.5)?;
        check_range("memory_overcommit_ratio", self.memory_overcommit_ratio, 1.0, 10.0)?;
        check_range("host_cpu_reserve_cores", self.host_cpu_reserve_cores, 0.0, 16.0)?;
        check_range("cpu_overcommit_ratio", self.cpu_overcommit_ratio, 1.0, 20.0)?;
        check_range("snapshot_max_age", self.snapshot_max_age.as_secs_f64(), 60.0, 365.0 * DAY.as_secs_f64())?;
        check_range("snapshot_retry_after", self.snapshot_retry_after.as_secs_f64(), 0.0, 3600.0)?;
        check_bytes("snapshot_max_bytes", self.snapshot_max_bytes, LEAST_SNAPSHOT_MAX_BYTES)?;
        check_bytes("layer_max_bytes", self.layer_max_bytes, LEAST_LAYER_MAX_BYTES)?;
        check_range("layer_max_age", self.layer_max_age.as_secs_f64(), 60.0, 365.0 * DAY.as_secs_f64())?;
        let package_install_memory_mib = self.package_install_memory(environment)?;
        check_pool("warm_pool_size", self.warm_pool_size)?;
        check_pool("blank_pool_size", self.blank_pool_size.unwrap_or_default())?;
        check_resolvers(self.resolvers.as_deref())?;
        exceptions(&self.network_exceptions)?;
        let registries = Registries::configured(&self.registries, environment.registries.as_deref())?;
        let (variable, tools) = (environment.package_indexes.as_deref(), &environment.package_tools);
        let indexes = Indexes::configured(&self.package_indexes, variable, tools)?;
        let cache_dir = self.cache_dir_in(environment)?;
        Ok(Settings {
            images_dir: self.images_dir.clone().unwrap_or_else(|| paths::images_dir(environment, &cache_dir)),
            assets_url: self.assets_url.clone().or_else(|| environment.assets_url.clone()),
            offline: self.offline || environment.offline,
            snapshot_dir: self.snapshot_dir.clone().unwrap_or_else(|| paths::snapshot_dir(&cache_dir)),
            run_dir: self.run_dir.clone().unwrap_or_else(|| paths::run_dir(environment)),
            accel: match self.accel {
                AccelRequest::Auto if environment.force_emulation => AccelRequest::Tcg,
                chosen => chosen,
            },
            qemu: self.qemu.clone().or_else(|| environment.qemu.clone()),
            cgroup: self.cgroup.clone().or_else(|| environment.cgroup.clone()),
            gateway: self.gateway.clone().or_else(|| environment.gateway.clone()),
            registries,
            indexes,
            package_ca: self.package_ca.clone().or_else(|| environment.package_ca.clone()),
            remote_cache: match (&self.remote_cache, &environment.remote_cache) {
                (Some(config), _) => Some(config.clone()),
                (None, Some(place)) => Some(remote_cache(place)?),
                (None, None) => None,
            },
            cache_dir,
            config: Self {
                package_preload: self.package_preload && !environment.package_preload_is_off,
                package_install_memory_mib: Some(package_install_memory_mib),
                ..self
            },
        })
    }

    /// Memory of the machine that installs packages, in MiB.
    fn package_install_memory(&self, environment: &Environment) -> Result<u32, Error> {
        let variable = environment.package_memory_mib.as_deref();
        let (name, text) = match (self.package_install_memory_mib, variable) {
            (Some(mib), _) => ("package_install_memory_mib", mib.to_string()),
            (None, Some(text)) => ("EXEC_SANDBOX_PACKAGE_MEMORY_MIB", text.to_owned()),
            (None, None) => return Ok(PACKAGE_INSTALL_MEMORY_MIB),
        };
        text.parse().ok().filter(|mib| (512..=65_536).contains(mib)).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, format!("{name} must be between 512 and 65536 (MiB), not {text}"))
        })
    }

    fn cache_dir_in(&self, environment: &Environment) -> Result<PathBuf, Error> {
        self.cache_dir.clone().map_or_else(|| paths::cache_dir(environment), Ok)
    }
}

impl Settings {
    /// Where it is noted which files of images have been proven.
    pub(crate) fn stamp_dir(&self) -> PathBuf {
        self.cache_dir.join("verified")
    }

    /// The store of snapshots of memory.
    pub(crate) fn snapshots(&self) -> Store {
        let limits = Limits { max_bytes: self.config.snapshot_max_bytes, max_age: self.config.snapshot_max_age };
        Store::at(self.snapshot_dir.clone(), limits)
    }

    /// The store of what was installed.
    pub(crate) fn layers(&self) -> layers::Store {
        let limits = Limits { max_bytes: self.config.layer_max_bytes, max_age: self.config.layer_max_age };
        let dir = self.config.layer_dir.clone().unwrap_or_else(|| paths::layer_dir(&self.cache_dir));
        layers::Store::at(dir, limits)
    }
}

/// The ranges as a gateway takes them.
pub(crate) fn exceptions(ranges: &[Cidr]) -> Result<Exceptions, Error> {
    Exceptions::new(ranges.iter().copied())
        .map_err(|error| Error::new(ErrorKind::InvalidConfig, "reading network_exceptions").because(error))
}

/// The remote cache that a variable names: `s3://bucket/prefix`, or a directory.
fn remote_cache(place: &str) -> Result<exec_sandbox_remote::Config, Error> {
    use exec_sandbox_remote::{Bucket, Config, Place};
    if let Some(rest) = place.strip_prefix("s3://") {
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let mut bucket = Bucket::new(name);
        if !prefix.is_empty() {
            prefix.clone_into(&mut bucket.prefix);
        }
        return Ok(Config::new(Place::Bucket(bucket)));
    }
    let path = place.strip_prefix("file://").unwrap_or(place);
    if path.starts_with('/') {
        return Ok(Config::new(Place::Directory(path.into())));
    }
    let message =
        format!("reading EXEC_SANDBOX_REMOTE_CACHE: {place:?} is neither s3://bucket/prefix nor an absolute path");
    Err(Error::new(ErrorKind::InvalidConfig, message).remedied_by("write s3://bucket/prefix/ or /a/directory"))
}

fn check_resolvers(resolvers: Option<&[SocketAddr]>) -> Result<(), Error> {
    if resolvers.is_none_or(|resolvers| (1..=MAX_RESOLVERS).contains(&resolvers.len())) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidConfig, format!("resolvers must name 1 to {MAX_RESOLVERS} addresses")))
}

fn check_pool(name: &str, size: usize) -> Result<(), Error> {
    if size <= MOST_POOL_SIZE {
        return Ok(());
    }
    let message = format!("{name} must be at most {MOST_POOL_SIZE}, not {size}");
    Err(Error::new(ErrorKind::InvalidArgument, message))
}

fn check_bytes(name: &str, most: u64, least: u64) -> Result<(), Error> {
    if (least..=MOST_CACHE_BYTES).contains(&most) {
        return Ok(());
    }
    let message = format!("{name} must be between {least} and {MOST_CACHE_BYTES}, not {most}");
    Err(Error::new(ErrorKind::InvalidArgument, message))
}

fn check_range(name: &str, value: f64, least: f64, most: f64) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let message = format!("{name} must be between {least} and {most}, not {value}");
    Err(Error::new(ErrorKind::InvalidArgument, message))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn forced_emulation_overrides_only_the_automatic_choice() {
        let environment = Environment { force_emulation: true, home: Some("/h".into()), ..Environment::default() };
        let auto = SchedulerConfig::default().resolve(&environment).expect("it is valid");
        assert_eq!(auto.accel, AccelRequest::Tcg);
        let chosen = SchedulerConfig { accel: AccelRequest::Kvm, ..SchedulerConfig::default() };
        assert_eq!(chosen.resolve(&environment).expect("it is valid").accel, AccelRequest::Kvm);
    }

    #[test]
    fn a_control_group_that_is_configured_comes_before_that_of_the_environment() {
        let environment = Environment { cgroup: Some("/e".into()), home: Some("/h".into()), ..Environment::default() };
        let by_default = SchedulerConfig::default().resolve(&environment).expect("it is valid");
        assert_eq!(by_default.cgroup, Some("/e".into()));
        let named = SchedulerConfig { cgroup: Some("/c".into()), ..SchedulerConfig::default() };
        assert_eq!(named.resolve(&environment).expect("it is valid").cgroup, Some("/c".into()));
    }

    #[test]
    fn a_place_of_images_that_is_configured_comes_first_and_offline_is_turned_on_by_either() {
        let home = || Environment { home: Some("/h".into()), ..Environment::default() };
        let environment = Environment { assets_url: Some("/e".into()), offline: true, ..home() };
        let by_default = SchedulerConfig::default().resolve(&environment).expect("it is valid");
        assert_eq!((by_default.assets_url.as_deref(), by_default.offline), (Some("/e"), true));
        let named = SchedulerConfig { assets_url: Some("/c".into()), ..SchedulerConfig::default() };
        assert_eq!(named.resolve(&environment).expect("it is valid").assets_url.as_deref(), Some("/c"));
        let offline = SchedulerConfig { offline: true, ..SchedulerConfig::default() };
        assert!(offline.resolve(&home()).expect("it is valid").offline);
    }

    #[test]
    fn the_cache_directory_is_the_one_that_is_used() {
        let environment = Environment { cache_dir: Some("/e".into()), ..Environment::default() };
        for (cache_dir, expected) in [(None, "/e"), (Some(PathBuf::from("/c")), "/c")] {
            let config = SchedulerConfig { cache_dir, ..SchedulerConfig::default() };
            assert_eq!(config.cache_dir_in(&environment).expect("it is known"), PathBuf::from(expected));
            assert_eq!(config.resolve(&environment).expect("it is valid").cache_dir, PathBuf::from(expected));
        }
    }

    #[test]
    fn what_is_said_of_installing_comes_from_the_configuration_then_from_the_environment() {
        let environment = |mib: &str| Environment {
            package_memory_mib: Some(mib.into()),
            package_preload_is_off: true,
            home: Some("/h".into()),
            ..Environment::default()
        };
        let by_default = SchedulerConfig::default().resolve(&environment("700")).expect("it is valid").config;
        assert_eq!((by_default.package_install_memory_mib, by_default.package_preload), (Some(700), false));
        let named = SchedulerConfig { package_install_memory_mib: Some(512), ..SchedulerConfig::default() };
        let named = named.resolve(&environment("700")).expect("it is valid").config;
        assert_eq!(named.package_install_memory_mib, Some(512));
        for wrong in ["511", "65537", "2G", "-1"] {
            let error = SchedulerConfig::default().resolve(&environment(wrong)).expect_err(wrong).to_string();
            assert!(error.starts_with("EXEC_SANDBOX_PACKAGE_MEMORY_MIB must be") && error.ends_with(wrong), "{error}");
        }
    }

    #[test]
    fn a_field_out_of_range_is_named() {
        let environment = Environment { home: Some("/h".into()), ..Environment::default() };
        let config = SchedulerConfig { cpu_overcommit_ratio: f64::NAN, ..SchedulerConfig::default() };
        let error = config.resolve(&environment).expect_err("NaN is in no range");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("cpu_overcommit_ratio"));
    }

    #[test]
    fn a_boot_has_from_a_second_to_ten_minutes() {
        let environment = Environment { home: Some("/h".into()), ..Environment::default() };
        for (seconds, valid) in [(0.999, false), (1.0, true), (600.0, true), (600.001, false)] {
            let boot_timeout = Duration::from_secs_f64(seconds);
            let resolved = SchedulerConfig { boot_timeout, ..SchedulerConfig::default() }.resolve(&environment);
            assert_eq!(resolved.is_ok(), valid, "{seconds} s");
        }
    }

    #[test]
    fn snapshots_are_in_the_cache_unless_another_place_is_named() {
        let environment = Environment { cache_dir: Some("/c".into()), ..Environment::default() };
        for (snapshot_dir, expected) in [(None, "/c/memory-snapshots"), (Some(PathBuf::from("/s")), "/s")] {
            let config = SchedulerConfig { snapshot_dir, ..SchedulerConfig::default() };
            let settings = config.resolve(&environment).expect("it is valid");
            assert_eq!(settings.snapshots().dir(), Path::new(expected));
        }
    }

    #[test]
    fn snapshots_have_room_for_some_and_time_to_be_used() {
        let environment = Environment { home: Some("/h".into()), ..Environment::default() };
        let year = 365 * 24 * 60 * 60;
        for (bytes, seconds, wrong) in [
            (256 << 20, 60, None),
            (1 << 40, year, None),
            ((256 << 20) - 1, 60, Some("snapshot_max_bytes")),
            ((1 << 40) + 1, 60, Some("snapshot_max_bytes")),
            (4 << 30, 59, Some("snapshot_max_age")),
            (4 << 30, year + 1, Some("snapshot_max_age")),
        ] {
            let snapshot_max_age = Duration::from_secs(seconds);
            let config = SchedulerConfig { snapshot_max_bytes: bytes, snapshot_max_age, ..SchedulerConfig::default() };
            let refused = config.resolve(&environment).err().map(|error| error.to_string());
            assert_eq!(refused.is_some(), wrong.is_some(), "{refused:?}");
            assert!(refused.unwrap_or_default().starts_with(wrong.unwrap_or_default()));
        }
    }

    #[test]
    fn what_vms_may_have_of_the_host_has_its_bounds() {
        let environment = Environment { home: Some("/h".into()), ..Environment::default() };
        type Field = fn(&mut SchedulerConfig) -> &mut f64;
        let fields: [(&str, Field, f64, f64); 4] = [
            ("host_memory_reserve_ratio", |config| &mut config.host_memory_reserve_ratio, 0.01, 0.5),
            ("memory_overcommit_ratio", |config| &mut config.memory_overcommit_ratio, 1.0, 10.0),
            ("host_cpu_reserve_cores", |config| &mut config.host_cpu_reserve_cores, 0.0, 16.0),
            ("cpu_overcommit_ratio", |config| &mut config.cpu_overcommit_ratio, 1.0, 20.0),
        ];
        for (name, field, least, most) in fields {
            let with = |value| {
                let mut config = SchedulerConfig::default();
                *field(&mut config) = value;
                config.resolve(&environment)
            };
            assert!(with(least).is_ok() && with(most).is_ok(), "{name}");
            for outside in [least - 0.001, most + 0.001] {
                let error = with(outside).expect_err(name);
                assert!(error.to_string().starts_with(name), "{error}");
            }
        }
    }
}
