//! The fingerprint of a configuration: what VMs are made of under it, on this machine and in this moment, as a digest.
//!
//! Two processes with the same one may run each other's requests: every choice is the same, and so are the image and QEMU. What an
//! image's files hold is taken from its manifest and proven by whoever starts VMs.

use std::path::Path;

use exec_sandbox_image::{ImageStore, KeyBuilder};

use crate::{Error, ErrorKind, SchedulerConfig, config::Settings, host, paths::Environment, qemu_program};

impl SchedulerConfig {
    /// What VMs are made of under this configuration. What is kept ready ahead of need does not count, nor do memory and time of those
    /// who name none. Blocks for less than a millisecond: it reads a manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Dependency`] without a QEMU, [`ErrorKind::AssetNotFound`] without the image, or an invalid field.
    pub fn fingerprint(&self) -> Result<String, Error> {
        of(self.clone().resolve(&Environment::read())?)
    }
}

fn of(settings: Settings) -> Result<String, Error> {
    let image = ImageStore::at(&settings.images_dir).load(&settings.config.image).map_err(|error| {
        let doing = format!("finding image {:?}", settings.config.image);
        Error::new(ErrorKind::AssetNotFound, doing).because(error).remedied_by("run `sbx doctor`")
    })?;
    let qemu = qemu_program::identity(host::arch()?, &settings, image.manifest())?;
    let place =
        |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into()).into_os_string().into_encoded_bytes();
    let maybe = |path: &Option<_>| path.as_deref().map(place).unwrap_or_default();
    let key = KeyBuilder::new("configuration")
        .with("image", format!("{:?}", image.manifest()).as_bytes())
        .with("qemu", qemu.as_bytes())
        .with("accel", format!("{:?}", settings.accel).as_bytes())
        .with("registries", format!("{:?}", settings.registries).as_bytes())
        .with("package_indexes", format!("{:?}", settings.indexes.urls()).as_bytes())
        .with("package_ca", &maybe(&settings.package_ca))
        .with("remote_cache", format!("{:?}", settings.remote_cache).as_bytes())
        .with("images_dir", &place(&settings.images_dir))
        .with("cache_dir", &place(&settings.cache_dir))
        .with("snapshot_dir", &place(&settings.snapshot_dir))
        .with("run_dir", &place(&settings.run_dir))
        .with("cgroup", &maybe(&settings.cgroup))
        .with("gateway", &maybe(&settings.gateway))
        .with("config", format!("{:?}", typed(settings.config)).as_bytes());
    Ok(key.finish().to_string())
}

/// What was chosen besides places, which are in the settings, and what each request may say for itself.
fn typed(config: SchedulerConfig) -> SchedulerConfig {
    let none = SchedulerConfig::default();
    SchedulerConfig {
        default_memory_mib: none.default_memory_mib,
        default_timeout: none.default_timeout,
        warm_pool_size: none.warm_pool_size,
        blank_pool_size: none.blank_pool_size,
        accel: none.accel,
        registries: none.registries,
        package_indexes: none.package_indexes,
        package_ca: None,
        remote_cache: None,
        images_dir: None,
        cache_dir: None,
        snapshot_dir: None,
        run_dir: None,
        qemu: None,
        cgroup: None,
        gateway: None,
        ..config
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, time::Duration};

    use exec_sandbox_image::{Blob, Digest, Interpreter, Manifest};

    use super::*;
    use crate::AccelRequest;

    /// A host with an image of which only the manifest is there, and a QEMU that nobody runs.
    fn host_in(dir: &Path) -> SchedulerConfig {
        let path = |name: &str| dir.join(name);
        fs::write(path("qemu"), "#!/bin/sh\n").expect("it can be written");
        fs::set_permissions(path("qemu"), fs::Permissions::from_mode(0o755)).expect("it is ours");
        fs::create_dir(path("images")).expect("it is new");
        publish(dir, "6.12.0");
        SchedulerConfig {
            qemu: Some(path("qemu")),
            images_dir: Some(path("images")),
            cache_dir: Some(path("cache")),
            run_dir: Some(path("run")),
            ..SchedulerConfig::default()
        }
    }

    fn publish(dir: &Path, kernel_version: &str) {
        let blob = Blob { blake3: Digest::of(b"content"), size_bytes: 7 };
        let bash = Interpreter { path: "/bin/bash".into(), version: "5.2".into() };
        let manifest = Manifest {
            format: Manifest::FORMAT,
            name: "standard".into(),
            arch: host::arch().expect("this machine runs guests").name().into(),
            kernel_version: kernel_version.into(),
            kernel: blob,
            initramfs: blob,
            root: blob,
            languages: BTreeMap::from([("raw".into(), bash)]),
            packages: Vec::new(),
            registries: BTreeMap::new(),
            indexes: BTreeMap::new(),
            qemu: None,
        };
        fs::write(dir.join("images/standard.json"), manifest.to_json().expect("it is valid")).expect("it is ours");
    }

    fn print(config: &SchedulerConfig) -> Result<String, Error> {
        of(config.clone().resolve(&Environment::default()).expect("it is valid"))
    }

    #[test]
    fn what_is_kept_ready_and_what_a_request_may_say_does_not_count() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = host_in(dir.path());
        let other = SchedulerConfig {
            warm_pool_size: 2,
            blank_pool_size: Some(1),
            default_memory_mib: 256,
            default_timeout: Duration::from_secs(1),
            ..config.clone()
        };
        assert_eq!(print(&config).expect("all is there"), print(&other).expect("all is there"));
    }

    #[test]
    fn whatever_else_differs_makes_another() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = host_in(dir.path());
        let of = |config: &SchedulerConfig| print(config).expect("all is there");
        let own = of(&config);
        type Change = fn(&mut SchedulerConfig);
        let changes: [(&str, Change); 9] = [
            ("accel", |config| config.accel = AccelRequest::Tcg),
            ("run_dir", |config| config.run_dir = Some("/other".into())),
            ("snapshots", |config| config.snapshots = false),
            ("resolvers", |config| config.resolvers = Some(vec![([192, 0, 2, 1], 53).into()])),
            ("cpu_overcommit_ratio", |config| config.cpu_overcommit_ratio = 3.0),
            ("package_validation", |config| config.package_validation = false),
            ("package_ca", |config| config.package_ca = Some("/other.pem".into())),
            ("package_indexes", |config| {
                config.package_indexes.insert(crate::Language::Python, "https://mirror.example/simple/".into());
            }),
            ("registries", |config| {
                config.registries.insert(crate::Language::Python, vec!["packages.example.com".into()]);
            }),
        ];
        for (what, change) in changes {
            let mut other = config.clone();
            change(&mut other);
            assert_ne!(of(&other), own, "{what}");
        }
        publish(dir.path(), "6.12.1");
        let of_another_image = of(&config);
        assert_ne!(of_another_image, own);
        fs::write(dir.path().join("qemu"), "#!/bin/sh\ntrue\n").expect("it is ours");
        assert_ne!(of(&config), of_another_image);
    }

    #[test]
    fn where_packages_come_from_counts_whoever_says_it() {
        use crate::layers::ToolVariables;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = host_in(dir.path());
        let of = |config: &SchedulerConfig, environment: Environment| {
            of(config.clone().resolve(&environment).expect("it is valid")).expect("all is there")
        };
        let none = || Environment::default();
        let url = "https://mirror.example/simple/";
        let mut chosen = config.clone();
        chosen.package_indexes.insert(crate::Language::Python, url.into());
        let own = of(&chosen, none());
        assert_ne!(own, of(&config, none()));
        let variable = Environment { package_indexes: Some(format!("python={url}")), ..none() };
        let tools = ToolVariables { python: Some(("UV_DEFAULT_INDEX", url.into())), ..ToolVariables::default() };
        for environment in [variable, Environment { package_tools: tools, ..none() }] {
            assert_eq!(of(&config, environment), own);
        }
        chosen.package_ca = Some("/ca.pem".into());
        let vouched = Environment {
            package_ca: Some("/ca.pem".into()),
            package_indexes: Some(format!("python={url}")),
            ..none()
        };
        assert_eq!(of(&chosen, none()), of(&config, vouched));
        assert_ne!(of(&chosen, none()), own);
    }

    #[test]
    fn without_an_image_there_is_none() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = SchedulerConfig { image: "other".into(), ..host_in(dir.path()) };
        assert_eq!(print(&config).expect_err("it is not there").kind(), ErrorKind::AssetNotFound);
    }
}
