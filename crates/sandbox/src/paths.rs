//! Where things are: the cache, the images, the directories of running VMs. Pure but for [`Environment::read`].

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{Error, ErrorKind, layers::ToolVariables};

/// What the process's environment says about places and choices. Read once, so that the rest is a function of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    pub(crate) cache_dir: Option<PathBuf>,
    pub(crate) images_dir: Option<PathBuf>,
    pub(crate) assets_url: Option<String>,
    pub(crate) offline: bool,
    pub(crate) run_dir: Option<PathBuf>,
    pub(crate) qemu: Option<PathBuf>,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) gateway: Option<PathBuf>,
    pub(crate) registries: Option<String>,
    pub(crate) package_indexes: Option<String>,
    pub(crate) package_tools: ToolVariables,
    pub(crate) package_ca: Option<PathBuf>,
    pub(crate) remote_cache: Option<String>,
    pub(crate) package_memory_mib: Option<String>,
    pub(crate) package_preload_is_off: bool,
    pub(crate) force_emulation: bool,
    pub(crate) xdg_cache_home: Option<PathBuf>,
    pub(crate) xdg_runtime_dir: Option<PathBuf>,
    pub(crate) home: Option<PathBuf>,
    pub(crate) temp_dir: PathBuf,
    pub(crate) uid: u32,
}

impl Environment {
    /// Reads the process's environment. An empty variable counts as unset.
    pub(crate) fn read() -> Self {
        let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let first = |names: &[&'static str]| names.iter().find_map(|name| Some((*name, text(name)?)));
        let is_true = |name: &str| {
            env::var(name).is_ok_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes"))
        };
        Self {
            cache_dir: path("EXEC_SANDBOX_CACHE_DIR"),
            images_dir: path("EXEC_SANDBOX_IMAGES_DIR"),
            assets_url: text("EXEC_SANDBOX_ASSETS_URL"),
            offline: is_true("EXEC_SANDBOX_OFFLINE"),
            run_dir: path("EXEC_SANDBOX_RUN_DIR"),
            qemu: path("EXEC_SANDBOX_QEMU"),
            cgroup: path("EXEC_SANDBOX_CGROUP"),
            gateway: path("EXEC_SANDBOX_GATEWAY"),
            registries: text("EXEC_SANDBOX_REGISTRIES"),
            package_indexes: text("EXEC_SANDBOX_PACKAGE_INDEXES"),
            package_tools: ToolVariables {
                python: first(&["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"]),
                javascript: first(&["npm_config_registry", "NPM_CONFIG_REGISTRY"]),
            },
            remote_cache: text("EXEC_SANDBOX_REMOTE_CACHE"),
            package_ca: path("EXEC_SANDBOX_PACKAGE_CA").or_else(|| path("SSL_CERT_FILE")),
            package_memory_mib: text("EXEC_SANDBOX_PACKAGE_MEMORY_MIB"),
            package_preload_is_off: text("EXEC_SANDBOX_PACKAGE_PRELOAD")
                .is_some_and(|value| matches!(value.to_lowercase().as_str(), "0" | "false" | "no")),
            force_emulation: is_true("EXEC_SANDBOX_FORCE_EMULATION"),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            home: path("HOME"),
            temp_dir: env::temp_dir(),
            uid: rustix::process::geteuid().as_raw(),
        }
    }
}

/// The root of everything that can be made again.
pub(crate) fn cache_dir(environment: &Environment) -> Result<PathBuf, Error> {
    if let Some(dir) = &environment.cache_dir {
        return Ok(dir.clone());
    }
    if let Some(dir) = &environment.xdg_cache_home {
        return Ok(dir.join("exec-sandbox"));
    }
    let in_home = if cfg!(target_os = "macos") { "Library/Caches/exec-sandbox" } else { ".cache/exec-sandbox" };
    environment.home.as_ref().map(|home| home.join(in_home)).ok_or_else(|| {
        Error::new(ErrorKind::Host, "finding the cache directory: HOME is not set")
            .remedied_by("set HOME or EXEC_SANDBOX_CACHE_DIR")
    })
}

/// Where images are.
pub(crate) fn images_dir(environment: &Environment, cache_dir: &Path) -> PathBuf {
    environment.images_dir.clone().unwrap_or_else(|| cache_dir.join("images"))
}

/// Where snapshots of memory are. Python's configuration says the same place.
pub(crate) fn snapshot_dir(cache_dir: &Path) -> PathBuf {
    cache_dir.join("memory-snapshots")
}

/// Where what was installed is.
pub(crate) fn layer_dir(cache_dir: &Path) -> PathBuf {
    cache_dir.join("package-layers")
}

/// Where running VMs have their directories: short, because a socket's path has 108 bytes, and gone after a reboot.
pub(crate) fn run_dir(environment: &Environment) -> PathBuf {
    if let Some(dir) = &environment.run_dir {
        return dir.clone();
    }
    match &environment.xdg_runtime_dir {
        Some(dir) => dir.join("exec-sandbox"),
        None if environment.uid == 0 => PathBuf::from("/run/exec-sandbox"),
        None => environment.temp_dir.join(format!("exec-sandbox-{}", environment.uid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_own_variable_comes_before_the_desktops_and_that_before_home() {
        let mut environment = Environment { home: Some("/h".into()), ..Environment::default() };
        assert_eq!(cache_dir(&environment).expect("HOME is set"), Path::new("/h/.cache/exec-sandbox"));
        environment.xdg_cache_home = Some("/x".into());
        assert_eq!(cache_dir(&environment).expect("XDG is set"), Path::new("/x/exec-sandbox"));
        environment.cache_dir = Some("/own".into());
        assert_eq!(cache_dir(&environment).expect("own is set"), Path::new("/own"));
    }

    #[test]
    fn without_a_home_the_error_names_the_variables() {
        let error = cache_dir(&Environment::default()).expect_err("nothing is set");
        assert!(error.remedy().is_some_and(|text| text.contains("EXEC_SANDBOX_CACHE_DIR")));
    }

    #[test]
    fn users_do_not_share_a_run_directory() {
        let of = |uid| run_dir(&Environment { uid, temp_dir: "/tmp".into(), ..Environment::default() });
        assert_ne!(of(1000), of(1001));
        assert_eq!(of(0), Path::new("/run/exec-sandbox"));
    }
}
